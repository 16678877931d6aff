"""KITTI's 3-D object benchmark, described by an `info.json` in the layout of MMDetection3D's info files.

KITTI's boxes lie in the rectified frame of camera 0: x right, y down, z forward, the origin at the middle of the box's
*bottom*, `rotation_y` about the axis that points down. The dataset does not place its sensors relative to the ground.
After the drawing of the vehicle at https://www.cvlibs.net/datasets/kitti/setup.php the Velodyne is taken to be level,
1.73 m above the ground and 0.76 m ahead of the rear axle.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from framework.data.sources.annotate import caption_of, dropped, questions_of, unmapped
from framework.data.sources.base import Frame, RecordedLog
from framework.data.sources.image import read_image
from framework.data.sources.info import class_names, counted_points, find_info_logs, read_info
from framework.data.sources.points import read_points
from framework.recipe.component import component
from framework.scene.frames import apply, invert, rigid
from framework.scene.types import CLASSES, Boxes, Camera, FloatArray, Lidar, Scene

LICENCE = "CC BY-NC-SA 3.0"
VELODYNE = rigid(np.eye(3), np.array([0.76, 0.0, 1.73]))
NAMES = ("Pedestrian", "Cyclist", "Car", "Van", "Truck", "Person_sitting", "Tram", "Misc")
"""Class names by label number in files that do not number their own."""
DONT_CARE = "DontCare"
"""The name of regions without annotations; their label number is -1."""
LABELS = {
    "Pedestrian": "pedestrian",
    "Person_sitting": "pedestrian",
    "Cyclist": "bicycle",
    "Car": "car",
    "Van": "car",
    "Truck": "truck",
}


SINGLE = "frames are single, in no order of time"


@component
@dataclass(frozen=True)
class Kitti:
    """Frames of KITTI's object benchmark, each a log of its own."""

    lacks: ClassVar = {
        "radar": "the vehicle has none",
        **dict.fromkeys(("history", "future", "surroundings"), SINGLE),
    }

    def find_logs(self, folder: str) -> Iterator[RecordedLog]:
        """See `RecordedDataset`."""
        return find_info_logs(folder, "kitti", _name)

    def read_scene(self, frame: Frame) -> Scene:
        """See `RecordedDataset`."""
        return read_scene(frame)


def _name(entry: dict[str, Any]) -> str:
    return f"{entry['sample_id']:06d}"


def read_scene(frame: Frame) -> Scene:
    """Returns the scene of a frame: the left colour camera, the sweep and the boxes, without past or future."""
    path, index = Path(frame[0]), frame[1]
    info = read_info(frame[0])
    entry = info["data_list"][index]
    boxes, unknown = _boxes(entry, {-1: DONT_CARE} | class_names(info, NAMES))
    seen = boxes.visible()
    unread = [name for name, camera in entry["images"].items() if name != "CAM2" and "img_path" in camera]
    points = read_points(path.parent / entry["lidar_points"]["lidar_path"], 4)
    name = _name(entry)
    return Scene(
        id=f"kitti-{name}",
        kind="kitti",
        cameras=(_camera(path.parent, entry["images"]["CAM2"]),),
        lidar=Lidar(points, VELODYNE),
        boxes=boxes,
        questions=questions_of(seen),
        caption=caption_of(seen),
        provenance={
            "dataset": "KITTI",
            "log": name,
            "timestamp": "unknown",
            "licence": LICENCE,
            **unmapped(unknown),
            **dropped(boxes, unread),
        },
    )


def _boxes(entry: dict[str, Any], names: dict[int, str]) -> tuple[Boxes, list[str]]:
    """Returns the boxes in the ego frame, and the classes of those left out."""
    to_ego = VELODYNE @ invert(np.array(entry["images"]["CAM2"]["lidar2cam"]))
    known, unknown = [], []
    for instance in entry["instances"]:
        number = instance["bbox_label_3d"]
        name = names.get(number, f"number {number}")
        label = LABELS.get(name, name)
        known.append((label, instance)) if label in CLASSES else unknown.append(name)
    labelled = np.array([instance["bbox_3d"] for _, instance in known], dtype=np.float64).reshape(-1, 7)
    length, height, width, angle = labelled[:, 3:].T
    centres = apply(to_ego, labelled[:, :3] - height[:, None] / 2 * np.array([0.0, 1.0, 0.0]))
    forward = np.stack([np.cos(angle), np.zeros_like(angle), -np.sin(angle)], axis=1) @ to_ego[:3, :3].T
    values = np.c_[centres, length, width, height, np.arctan2(forward[:, 1], forward[:, 0])]
    points = counted_points([instance for _, instance in known])
    velocities = np.full((len(known), 2), np.nan)
    return Boxes(np.c_[values, velocities], tuple(label for label, _ in known), points=points), unknown


def _camera(folder: Path, camera: dict[str, Any]) -> Camera:
    """Returns camera 2. Its projection matrix is `K [I | t]` from camera 0's frame, where it is at `-t`."""
    projection: FloatArray = np.array(camera["cam2img"])[:3]
    intrinsic = projection[:, :3]
    from_camera0 = rigid(np.eye(3), np.linalg.solve(intrinsic, projection[:, 3]))
    extrinsic = VELODYNE @ invert(np.array(camera["lidar2cam"])) @ invert(from_camera0)
    image = read_image(folder / camera["img_path"], camera["width"], camera["height"])
    return Camera("front", (image,), np.zeros(1), intrinsic, extrinsic, camera["width"], camera["height"])
