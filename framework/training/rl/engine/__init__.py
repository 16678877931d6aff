"""Engines of reinforcement learning, over the live model (contract 8)."""
