"""Driving what the model plans: a batched simulator, episodes measured, rewards."""
