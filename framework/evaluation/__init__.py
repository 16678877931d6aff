"""Metrics of driving, the suite of all tasks, and the report."""
