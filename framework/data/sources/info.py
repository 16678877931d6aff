"""Info files in MMDetection3D's layout, stored as JSON: the description of KITTI's and nuScenes' frames."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from framework.data.sources.base import UNREADABLE, Frame, RecordedLog, fault_of, files_below
from framework.scene.types import SceneError

UNKNOWN_LOG = "unknown"
"""The log of entries that do not tell theirs."""


def find_info_logs(folder: str, dataset: str, log_of: Callable[[dict[str, Any]], str]) -> Iterator[RecordedLog]:
    """Yields the logs of every info file below `folder` that describes `dataset` by its `metainfo`. A frame is the file
    and the index in its `data_list`; `log_of` tells an entry's log. Versions of MMDetection3D differ in `dataset`,
    `DATASET` and the case. A file that is damaged is a log without frames, which tells why.
    """
    for path in files_below(folder, "info.json"):
        try:
            info = read_info(str(path))
        except UNREADABLE as error:
            yield RecordedLog(str(path), (), left_out={fault_of(path, error): 1})
            continue
        metainfo = info.get("metainfo")
        names = [metainfo.get(key) for key in ("dataset", "DATASET")] if isinstance(metainfo, dict) else []
        if dataset not in [str(name).lower() for name in names]:
            continue
        if not isinstance(info.get("data_list"), list):
            yield RecordedLog(str(path), (), left_out={f"{path}: data_list: no list of frames; fetch it again": 1})
            continue
        logs: dict[str, list[Frame]] = {}
        for index, entry in enumerate(info["data_list"]):
            try:
                name = log_of(entry)
            except (LookupError, TypeError, ValueError, AttributeError):
                name = UNKNOWN_LOG
            logs.setdefault(name, []).append((str(path), index))
        yield from (RecordedLog(name, tuple(frames)) for name, frames in logs.items())


def class_names(info: dict[str, Any], usual: Sequence[str] = ()) -> dict[int, str]:
    """Returns the dataset's classes by label number: of the file's `categories`, which are numbers by name or a
    list, of its list of `classes`, or the `usual` ones of files that number none.
    """
    metainfo = info["metainfo"]
    numbered = metainfo.get("categories")
    if isinstance(numbered, dict) and numbered:
        return {int(number): str(name) for name, number in numbered.items()}
    return dict(enumerate(numbered or metainfo.get("classes") or usual))


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
        info = json.loads(Path(path).read_bytes())  # which may start with a byte order mark
    except ValueError as error:
        raise SceneError(f"{path}: {error}: is not JSON; fetch it again") from error
    if not isinstance(info, dict):
        raise SceneError(
            f"{path}: holds a {type(info).__name__}; an info file is an object with metainfo and data_list"
        )
    return info
