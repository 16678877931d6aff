"""nuScenes keyframes, described by an `info.json` in the layout of MMDetection3D's info files.

Boxes are given in the LiDAR's frame (x right, y forward), centred, with velocities in its axes; nuScenes' own ego frame
is ours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from framework.data.sources.annotate import caption_of, questions_of, unmapped
from framework.data.sources.info import Item, frames, read_info
from framework.scene.frames import invert, transform_boxes
from framework.scene.types import CLASSES, Boxes, Camera, FloatArray, Lidar, Scene, SceneError

LICENCE = "CC BY-NC-SA 4.0, non-commercial (nuScenes terms of use)"


def find(folder: Path) -> list[Item]:
    """Every nuScenes keyframe below `folder`."""
    return frames(folder, "dataset", "nuscenes")


def convert(item: Item) -> Scene:
    """The keyframe as a scene: six cameras, the sweep and the boxes; no past, no future."""
    path, index = Path(item[0]), item[1]
    info = read_info(item[0])
    frame = info["data_list"][index]
    to_ego: FloatArray = np.array(frame["lidar_points"]["lidar2ego"])
    boxes, dropped = _boxes(frame, {number: name for name, number in info["metainfo"]["categories"].items()})
    boxes = transform_boxes(boxes, to_ego)
    sweep = path.parent / frame["lidar_points"]["lidar_path"]
    return Scene(
        id=f"nuscenes-{frame['token']}",
        kind="nuscenes",
        cameras=tuple(_camera(path.parent, name, camera, frame, to_ego) for name, camera in frame["images"].items()),
        lidar=Lidar(_points(sweep, frame["lidar_points"]["num_pts_feats"]), to_ego),
        boxes=boxes,
        questions=questions_of(boxes),
        caption=caption_of(boxes),
        provenance={
            "dataset": f"nuScenes {info['metainfo']['version']}",
            "log": sweep.name.partition("__")[0],
            "timestamp": str(round(frame["timestamp"] * 1e6) * 1000),
            "licence": LICENCE,
            **unmapped(dropped),
        },
    )


def _boxes(frame: dict[str, Any], names: dict[int, str]) -> tuple[Boxes, list[str]]:
    """The boxes in the LiDAR's frame, and the classes of those left out."""
    known, dropped = [], []
    for instance in frame["instances"]:
        name = names.get(instance["bbox_label_3d"], "unknown")
        known.append((name, instance)) if name in CLASSES else dropped.append(name)
    values = np.array([[*i["bbox_3d"], *i["velocity"]] for _, i in known], dtype=np.float64).reshape(-1, 9)
    points = np.array([instance["num_lidar_pts"] for _, instance in known], dtype=np.int64)
    return Boxes(values, tuple(name for name, _ in known), points=points), dropped


def _camera(folder: Path, name: str, camera: dict[str, Any], frame: dict[str, Any], to_ego: FloatArray) -> Camera:
    """A camera placed in the ego frame of the *sweep's* time: `lidar2cam` holds the ego's motion since the exposure."""
    return Camera(
        name=name.removeprefix("CAM_").lower(),
        frames=((folder / camera["img_path"]).read_bytes(),),
        times=np.minimum([camera["timestamp"] - frame["timestamp"]], 0.0),
        intrinsic=np.array(camera["cam2img"])[:3, :3],
        extrinsic=to_ego @ invert(np.array(camera["lidar2cam"])),
        width=camera.get("width", 1600),
        height=camera.get("height", 900),
    )


def _points(path: Path, channels: int) -> FloatArray:
    """The sweep `(n, 4)`; its intensities are bytes."""
    values = np.fromfile(path, dtype=np.float32)
    if len(values) % channels:
        raise SceneError(
            f"{path}: {len(values)} values are no rows of {channels}: the file is cut short; fetch it again"
        )
    points: FloatArray = values.reshape(-1, channels)[:, :4].copy()
    points[:, 3] /= 255.0
    return points
