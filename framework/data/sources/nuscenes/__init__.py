"""nuScenes: the tables as downloaded, and the info files of MMDetection3D."""
