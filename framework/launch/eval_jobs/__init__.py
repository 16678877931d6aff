"""Evaluation jobs: a watcher submits one for each checkpoint and suite."""
