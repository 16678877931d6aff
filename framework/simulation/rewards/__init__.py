"""What answers are worth: components, and their weighted sum."""
