"""Info files in MMDetection3D's layout, stored as JSON: the description of KITTI's and nuScenes' frames."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from framework.data.sources.base import Frame
from framework.scene.types import SceneError


def find_info_frames(folder: Path, key: str, dataset: str) -> list[Frame]:
    """Returns every frame below `folder` whose info file has `metainfo.<key>: <dataset>`, as the file and the frame's
    index in its `data_list`.
    """
    frames = []
    for path in sorted(folder.rglob("info.json")):
        info = read_info(str(path))
        if info.get("metainfo", {}).get(key) == dataset:
            frames += [(str(path), index) for index in range(len(info["data_list"]))]
    return frames


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
