"""An example plugin: a LiDAR encoder with its preset, a recipe that trains with it, and a test."""
