"""Recipes: composed, checked, explained and compared without importing torch; instantiated from allowed targets
only."""
