"""KITTI's 3-D object benchmark, described by an `info.json` in the layout of MMDetection3D's info files.

Boxes lie in the rectified frame of camera 0, as those of `labels`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from framework.data.sources.annotate import annotated, dropped, unmapped
from framework.data.sources.base import Frame, RecordedLog, inside
from framework.data.sources.image import read_image
from framework.data.sources.info import class_names, counted_points, find_info_logs, read_info
from framework.data.sources.kitti.calibration import VELODYNE, camera_of
from framework.data.sources.kitti.labels import DONT_CARE, LABELS, LICENCE, boxes_in_ego
from framework.data.sources.points import read_points
from framework.data.sources.tracks import near_boxes
from framework.scene.frames import invert
from framework.scene.types import CLASSES, Boxes, Camera, Lidar, Scene, SceneError

NAMES = ("Pedestrian", "Cyclist", "Car", "Van", "Truck", "Person_sitting", "Tram", "Misc")
"""Class names by label number in files that do not number their own."""


def find_logs(folder: str) -> Iterator[RecordedLog]:
    """Yields the frames that info files below `folder` describe, each a log; see `RecordedDataset`."""
    return find_info_logs(folder, "kitti", _name)


def number_of(frame: Frame) -> int:
    """Returns the number of a frame; -1 where its entry tells none."""
    entry = read_info(frame[0])["data_list"][frame[1]]
    number = entry.get("sample_id") if isinstance(entry, dict) else None
    return number if isinstance(number, int) else -1


def _name(entry: dict[str, Any]) -> str:
    return f"{entry['sample_id']:06d}"


def read_scene(frame: Frame) -> Scene:
    """Returns the scene of a frame: the left colour camera, the sweep and the boxes, without past or future. One
    of both files that can't be used costs itself alone.
    """
    path, index = Path(frame[0]), frame[1]
    info = read_info(frame[0])
    entry = info["data_list"][index]
    others: dict[str, int] = {}
    boxes, unknown = _boxes(entry, {-1: DONT_CARE} | class_names(info, NAMES))
    boxes = boxes.take(near_boxes(boxes, others))
    seen = boxes.visible()
    unread = [name for name, camera in entry["images"].items() if name != "CAM2" and "img_path" in camera]
    name, lidar = _name(entry), None
    cameras: tuple[Camera, ...] = ()
    sweep = inside(path.parent, entry["lidar_points"]["lidar_path"])
    try:
        cameras = (_camera(path.parent, entry["images"]["CAM2"]),)
    except (SceneError, OSError) as error:
        unread.append(f"front ({error})")
    try:
        lidar = Lidar(read_points(sweep, 4, others), VELODYNE)
    except (SceneError, OSError) as error:
        unread.append(f"lidar ({error})")
    if not cameras and lidar is None:
        raise SceneError(f"{path}: frame {name} has neither an image nor a sweep; {'; '.join(unread)}")
    return Scene(
        id=f"kitti-{name}",
        kind="kitti",
        cameras=cameras,
        lidar=lidar,
        boxes=boxes,
        **annotated(seen, None),
        provenance={
            "dataset": "KITTI",
            "log": name,
            "timestamp": "unknown",
            "licence": LICENCE,
            **unmapped(unknown),
            **dropped(boxes, unread, others),
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
    values = boxes_in_ego(labelled, to_ego)
    points = counted_points([instance for _, instance in known])
    velocities = np.full((len(known), 2), np.nan)
    return Boxes(np.c_[values, velocities], tuple(label for label, _ in known), points=points), unknown


def _camera(folder: Path, camera: dict[str, Any]) -> Camera:
    """Returns camera 2."""
    intrinsic, from_camera0 = camera_of(np.array(camera["cam2img"])[:3])
    extrinsic = VELODYNE @ invert(np.array(camera["lidar2cam"])) @ invert(from_camera0)
    image = read_image(inside(folder, camera["img_path"]), camera["width"], camera["height"])
    return Camera("front", (image,), np.zeros(1), intrinsic, extrinsic, camera["width"], camera["height"])
