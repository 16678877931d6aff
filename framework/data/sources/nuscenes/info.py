"""nuScenes keyframes, described by an `info.json` in the layout of MMDetection3D's info files.

Boxes are given in the LiDAR's frame (x right, y forward), centred, with velocities in its axes; nuScenes' own ego frame
is ours.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np

from framework.data.sources.annotate import annotated, dropped, unmapped
from framework.data.sources.base import Frame, RecordedLog, inside
from framework.data.sources.image import read_image
from framework.data.sources.info import class_names, counted_points, find_info_logs, read_info
from framework.data.sources.points import read_points
from framework.data.sources.tracks import near_boxes
from framework.scene.frames import invert, transform_boxes
from framework.scene.types import CLASSES, DETECTION_CLASSES, Boxes, Camera, FloatArray, Lidar, Scene, SceneError

LICENCE = "CC BY-NC-SA 4.0, non-commercial (nuScenes terms of use)"

UNREAD = ("lidar_sweeps", "image_sweeps", "radar_points", "radar_sweeps")
"""Parts of an entry that are not read, and counted where there are any."""
CLOCK_S = 1e-3
"""Difference (s) below which two times are the same."""


def find_logs(folder: str) -> Iterator[RecordedLog]:
    """Yields the logs that info files below `folder` describe; see `RecordedDataset`."""
    return find_info_logs(folder, "nuscenes", _log)


def token_of(frame: Frame) -> str | None:
    """Returns the token of a frame's sample; None where the entry has none."""
    entry = read_info(frame[0])["data_list"][frame[1]]
    token = entry.get("token") if isinstance(entry, dict) else None
    return token if isinstance(token, str) else None


def _log(entry: dict[str, Any]) -> str:
    return Path(entry["lidar_points"]["lidar_path"]).name.partition("__")[0]


def read_scene(frame: Frame) -> Scene:
    """Returns the scene of a keyframe: six cameras, the sweep and the boxes, without past or future. A file
    that can't be used costs itself alone, as long as there is another.
    """
    path, index = Path(frame[0]), frame[1]
    info = read_info(frame[0])
    entry = info["data_list"][index]
    to_ego: FloatArray = np.array(entry["lidar_points"]["lidar2ego"])
    others: dict[str, int] = {}
    boxes, unknown = _boxes(entry, class_names(info, DETECTION_CLASSES))
    boxes = transform_boxes(boxes, to_ego)
    boxes = boxes.take(near_boxes(boxes, others))
    seen = boxes.visible()
    on_time = {name: camera for name, camera in entry["images"].items() if not _is_later(camera, entry)}
    unread = [f"{name} (exposed after the moment)" for name in entry["images"] if name not in on_time]
    unread += [key for key in UNREAD if entry.get(key)]
    cameras = []
    for name, camera in on_time.items():
        try:
            cameras.append(_camera(path.parent, name, camera, entry, to_ego))
        except (SceneError, OSError) as error:
            unread.append(f"{name} ({error})")
    lidar = None
    sweep = inside(path.parent, entry["lidar_points"]["lidar_path"])
    try:
        lidar = Lidar(read_sweep(sweep, entry["lidar_points"]["num_pts_feats"], others), to_ego)
    except (SceneError, OSError) as error:
        if not cameras:
            raise
        unread.append(f"LIDAR_TOP ({error})")
    return Scene(
        id=f"nuscenes-{entry['token']}",
        kind="nuscenes",
        cameras=tuple(cameras),
        lidar=lidar,
        boxes=boxes,
        **annotated(seen, None),
        provenance={
            "dataset": f"nuScenes {info['metainfo']['version']}",
            "log": _log(entry),
            "timestamp": str(round(entry["timestamp"] * 1e6) * 1000),
            "licence": LICENCE,
            **unmapped(unknown),
            **dropped(boxes, unread, others),
        },
    )


def _boxes(entry: dict[str, Any], names: dict[int, str]) -> tuple[Boxes, list[str]]:
    """Returns the boxes in the LiDAR's frame, and the classes of those left out."""
    known, unknown = [], []
    for instance in entry["instances"]:
        number = instance["bbox_label_3d"]
        name = names.get(number, "unknown" if number < 0 else f"number {number}")
        known.append((name, instance)) if name in CLASSES else unknown.append(name)
    unknown_velocity = (np.nan, np.nan)
    values = np.array([[*i["bbox_3d"], *(i.get("velocity") or unknown_velocity)] for _, i in known], dtype=np.float64)
    points = counted_points([instance for _, instance in known])
    return Boxes(values.reshape(-1, 9), tuple(name for name, _ in known), points=points), unknown


def _is_later(camera: dict[str, Any], entry: dict[str, Any]) -> bool:
    """Returns whether a camera was exposed after the sweep: its image would show what is still to come."""
    return bool(camera["timestamp"] - entry["timestamp"] > CLOCK_S)


def _camera(folder: Path, name: str, camera: dict[str, Any], entry: dict[str, Any], to_ego: FloatArray) -> Camera:
    """Returns a camera in the ego frame at the *sweep's* time: `lidar2cam` includes the ego's motion since the
    exposure.
    """
    width, height = camera.get("width", 1600), camera.get("height", 900)
    return Camera(
        name=name.removeprefix("CAM_").lower(),
        frames=(read_image(inside(folder, camera["img_path"]), width, height),),
        times=np.minimum([camera["timestamp"] - entry["timestamp"]], 0.0),
        intrinsic=np.array(camera["cam2img"])[:3, :3],
        extrinsic=to_ego @ invert(np.array(camera["lidar2cam"])),
        width=width,
        height=height,
    )


def read_sweep(path: Path, channels: int, left_out: MutableMapping[str, int]) -> FloatArray:
    """Returns the sweep `(n, 4)`: x, y, z (m) and intensity, stored as bytes and scaled to [0, 1]. `left_out` and
    errors as in `read_points`.
    """
    points: FloatArray = read_points(path, channels, left_out)[:, :4].copy()
    points[:, 3] /= 255.0
    return points
