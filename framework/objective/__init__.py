"""Losses, advantages and their normalisation as pure functions of tensors."""
