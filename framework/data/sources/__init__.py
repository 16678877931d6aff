"""Sources of scenes: recorded datasets as downloaded, and the built-in world."""
