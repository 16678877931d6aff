"""The closed-loop simulator: scenes, dynamics, traffic, episodes, measures and rewards."""
