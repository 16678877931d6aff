"""Scenes rendered to token ids and sensor tensors."""
