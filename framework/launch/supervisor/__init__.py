"""The supervisor of a job's node: it starts the workers, watches them and restarts them."""
