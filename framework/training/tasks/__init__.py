"""The tasks that a recipe runs: train, evaluate, export."""
