"""PhysicalAI-Autonomous-Vehicles: clips of 20 s with f-theta cameras, a LiDAR and radars, as downloaded."""
