"""A plugin that adds one LiDAR encoder, its preset, a recipe that trains with it, and a test."""
