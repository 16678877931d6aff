"""Writes what nuscenes-devkit 1.2.0 says of the tree of `nuscenes_tree.py`, as JSON on standard output.

The devkit needs numpy below 2, hence an environment of its own:

    uv venv -p 3.11 ENV && uv pip install --python ENV/bin/python nuscenes-devkit==1.2.0
    ENV/bin/python tests/data/sources/nuscenes_oracle.py > tests/data/sources/nuscenes_devkit.json
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from nuscenes.eval.common.utils import quaternion_yaw  # type: ignore[import-not-found]
from nuscenes.map_expansion.map_api import NuScenesMap  # type: ignore[import-not-found]
from nuscenes.nuscenes import NuScenes  # type: ignore[import-not-found]
from nuscenes.prediction import PredictHelper  # type: ignore[import-not-found]
from nuscenes.utils.data_classes import LidarPointCloud, RadarPointCloud  # type: ignore[import-not-found]
from nuscenes.utils.geometry_utils import transform_matrix, view_points  # type: ignore[import-not-found]
from nuscenes.utils.splits import create_splits_scenes  # type: ignore[import-not-found]
from nuscenes_tree import SCENES, VERSION, token, write_tree  # type: ignore[import-not-found]
from pyquaternion import Quaternion  # type: ignore[import-not-found]

CHOSEN = ((0, 0), (0, 4), (1, 5))
"""Scene and sample of the frames that are told."""
POINTS = ((600.0, 1600.0), (570.0, 1670.0), (440.0, 1500.0), (581.0, 1670.0))


def matrix(row: dict[str, Any], inverse: bool = False) -> Any:
    return transform_matrix(row["translation"], Quaternion(row["rotation"]), inverse=inverse)


def frame(nusc: Any, helper: Any, scene: str, k: int) -> dict[str, Any]:
    sample = nusc.get("sample", token(scene, "sample", k))
    sweep = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
    pose = nusc.get("ego_pose", sweep["ego_pose_token"])
    to_ego = matrix(pose, inverse=True)
    boxes, futures = {}, {}
    for annotation in sample["anns"]:
        box, row = nusc.get_box(annotation), nusc.get("sample_annotation", annotation)
        box.translate(-np.array(pose["translation"]))
        box.rotate(Quaternion(pose["rotation"]).inverse)
        boxes[row["instance_token"]] = {"category": box.name, "centre": box.center.tolist(), "wlh": box.wlh.tolist(),
                                        "yaw": quaternion_yaw(box.orientation)}  # fmt: skip
        later = helper.get_future_for_agent(row["instance_token"], sample["token"], 6.0, False, just_xy=False)
        futures[row["instance_token"]] = [
            [helper._timestamp_for_sample(each["sample_token"]), *each["translation"][:2]] for each in later
        ]
    sensors: dict[str, Any] = {"cameras": {}, "radars": {}}
    for channel, data in sample["data"].items():
        reading = nusc.get("sample_data", data)
        if reading["timestamp"] > sweep["timestamp"]:
            if not reading["prev"]:
                continue
            reading = nusc.get("sample_data", reading["prev"])
        own = nusc.get("ego_pose", reading["ego_pose_token"])
        mount = nusc.get("calibrated_sensor", reading["calibrated_sensor_token"])
        path = f"{nusc.dataroot}/{reading['filename']}"
        if channel.startswith("CAM"):
            pixels = {}
            for annotation in sample["anns"]:
                box = nusc.get_box(annotation)
                for row in (own, mount):
                    box.translate(-np.array(row["translation"]))
                    box.rotate(Quaternion(row["rotation"]).inverse)
                if box.center[2] > 0.1:
                    seen = view_points(box.center[:, None], np.array(mount["camera_intrinsic"]), normalize=True)
                    pixels[nusc.get("sample_annotation", annotation)["instance_token"]] = [*seen[:2, 0], box.center[2]]
            sensors["cameras"][channel] = {"file": reading["filename"], "pixels": pixels}
        elif channel.startswith("RADAR"):
            cloud = RadarPointCloud.from_file(path)
            x, y, vx, vy = (cloud.points[row].copy() for row in (0, 1, 8, 9))
            cloud.transform(to_ego @ matrix(own) @ matrix(mount))
            radial = (x * vx + y * vy) / np.hypot(x, y)
            sensors["radars"][channel] = np.c_[cloud.points[:3].T, radial, cloud.points[5]].tolist()
        else:
            cloud = LidarPointCloud.from_file(path)
            cloud.transform(to_ego @ matrix(own) @ matrix(mount))
            sensors["lidar"] = cloud.points[:, :3].T.tolist()
    way = []
    while sweep["prev"]:
        sweep = nusc.get("sample_data", sweep["prev"])
    while True:
        way.append([sweep["timestamp"], *nusc.get("ego_pose", sweep["ego_pose_token"])["translation"]])
        if not sweep["next"]:
            break
        sweep = nusc.get("sample_data", sweep["next"])
    return {"sample": sample["token"], "pose": matrix(pose).tolist(), "boxes": boxes, "futures": futures, **sensors,
            "way": way}  # fmt: skip


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_tree(Path(folder))
        nusc = NuScenes(VERSION, folder, verbose=False)
        helper, names = PredictHelper(nusc), list(SCENES)
        areas = NuScenesMap(folder, SCENES[names[0]])
        splits = create_splits_scenes()
        told = {
            "source": f"nuscenes-devkit {importlib.metadata.version('nuscenes-devkit')}, by nuscenes_oracle.py",
            "frames": [frame(nusc, helper, names[scene], k) for scene, k in CHOSEN],
            "drivable": [[*point, bool(areas.layers_on_point(*point)["drivable_area"])] for point in POINTS],
            "splits": {
                name: [len(splits[name]), hashlib.sha256(",".join(sorted(splits[name])).encode()).hexdigest()]
                for name in ("train", "val", "test", "mini_train", "mini_val")
            },
        }
    json.dump(
        json.loads(json.dumps(told), parse_float=lambda text: round(float(text), 8)), sys.stdout, separators=(",", ":")
    )
    print()


if __name__ == "__main__":
    main()
