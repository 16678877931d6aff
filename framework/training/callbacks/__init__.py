"""Callbacks of the trainer: checkpoints, non-finite steps, data stalls."""
