"""Evaluations of a model: by tasks, open loop, closed loop."""
