"""KITTI: the 3-D object benchmark, the raw drives and the tracking benchmark, as downloaded or as info files."""
