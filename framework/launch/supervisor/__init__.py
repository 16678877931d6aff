"""The supervisor of a job: it starts workers, watches them and starts them again."""
