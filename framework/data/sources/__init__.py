"""Where scenes come from: recordings as downloaded, and the built-in world."""
