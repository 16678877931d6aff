"""123D: nuPlan, Waymo, PandaSet, KITTI-360 and others as py123d converts them to Arrow files."""
