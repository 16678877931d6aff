"""Info files in MMDetection3D's layout, rewritten as JSON: what describes KITTI's and nuScenes' frames."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from framework.scene.types import SceneError

Item = tuple[str, int]
"""An info file and the frame's place in it."""


def frames(folder: Path, key: str, dataset: str) -> list[Item]:
    """Every frame below `folder` whose info file says `metainfo.<key>: <dataset>`."""
    items = []
    for path in sorted(folder.rglob("info.json")):
        info = read_info(str(path))
        if info.get("metainfo", {}).get(key) == dataset:
            items += [(str(path), index) for index in range(len(info["data_list"]))]
    return items


@functools.lru_cache(maxsize=2)
def read_info(path: str) -> dict[str, Any]:
    """An info file; frames of one file are read one after the other. Raises `SceneError` when it is no JSON object."""
    try:
        info = json.loads(Path(path).read_text())
    except ValueError as error:
        raise SceneError(f"{path}: {error}: is no JSON; fetch it again") from error
    if not isinstance(info, dict):
        raise SceneError(
            f"{path}: holds a {type(info).__name__}; an info file is an object with metainfo and data_list"
        )
    return info
