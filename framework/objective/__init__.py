"""Losses and their normalisation: pure functions of tensors."""
