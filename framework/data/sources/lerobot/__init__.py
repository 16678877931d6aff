"""LeRobotDataset v3: read as a source of scenes, and written from scenes."""
