"""Engines that answer the prompts of reinforcement learning, over the live model (contract 8)."""
