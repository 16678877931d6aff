"""Info files in MMDetection3D's layout, stored as JSON: the description of KITTI's and nuScenes' frames."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from framework.data.sources.base import Frame
from framework.scene.types import SceneError


def find_info_frames(folder: Path, dataset: str) -> list[Frame]:
    """Returns every frame below `folder` whose info file describes `dataset` by its `metainfo`, as the file and the
    frame's index in its `data_list`. Versions of MMDetection3D differ in `dataset`, `DATASET` and the case.
    """
    frames = []
    for path in sorted(folder.rglob("info.json")):
        info = read_info(str(path))
        metainfo = info.get("metainfo")
        names = [metainfo.get(key) for key in ("dataset", "DATASET")] if isinstance(metainfo, dict) else []
        if dataset in [str(name).lower() for name in names]:
            frames += [(str(path), index) for index in range(len(info["data_list"]))]
    return frames


def class_names(info: dict[str, Any], usual: Sequence[str] = ()) -> dict[int, str]:
    """Returns the dataset's classes by label number: of the file's `categories`, of its list of `classes`, or the
    `usual` ones of files that number none.
    """
    metainfo = info["metainfo"]
    if metainfo.get("categories"):
        return {int(number): str(name) for name, number in metainfo["categories"].items()}
    return dict(enumerate(metainfo.get("classes") or usual))


def counted_points(instances: Sequence[dict[str, Any]]) -> npt.NDArray[np.int64] | None:
    """Returns how many points of the LiDAR, or else of the radar, lie in each box `(n,)`; None where the file does not
    say.
    """
    if any(instance.get("num_lidar_pts", -1) < 0 for instance in instances):
        return None
    points = [instance["num_lidar_pts"] or max(instance.get("num_radar_pts", 0), 0) for instance in instances]
    return np.array(points, dtype=np.int64)


@functools.lru_cache(maxsize=2)
def read_info(path: str) -> dict[str, Any]:
    """Returns an info file; cached, since the frames of one file are read in sequence. Raises `SceneError` when it is
    no JSON object.
    """
    try:
        info = json.loads(Path(path).read_text())
    except ValueError as error:
        raise SceneError(f"{path}: {error}: is not JSON; fetch it again") from error
    if not isinstance(info, dict):
        raise SceneError(
            f"{path}: holds a {type(info).__name__}; an info file is an object with metainfo and data_list"
        )
    return info
