"""The schedulers that jobs are submitted to. Each implements `base.Scheduler`."""
