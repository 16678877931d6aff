"""Reinforcement learning: sample, simulate, reward, advantage, update, sync."""
