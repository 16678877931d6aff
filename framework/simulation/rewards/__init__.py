"""Rewards of answers: components and their weighted sum."""
