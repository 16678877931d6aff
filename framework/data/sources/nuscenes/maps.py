"""The drivable area of nuScenes' map expansion, `maps/expansion/<location>.json` (version 1.3 on).

Layers are lists of rows joined by token, as the other tables: an area names polygons, a polygon the nodes of its
exterior and those of its holes, a node its x and y (m) in the map's frame.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from framework.data.sources.areas import parts_of
from framework.scene.types import FloatArray, SceneError


def map_file(root: Path, location: str) -> Path:
    """Returns where the expansion of a location lies, whether or not it is there."""
    return root / "maps" / "expansion" / f"{location}.json"


@functools.lru_cache(maxsize=4)
def find_areas(path: Path) -> tuple[tuple[FloatArray, ...], Mapping[str, int]]:
    """Returns the `drivable_areas` of an expansion, and what is wrong with it, by name. Cached, failures as well, since
    there are four maps of up to 60 MB.
    """
    if not path.is_file():
        return (), {f"map that is not there: maps/expansion/{path.name}": 1}
    try:
        return drivable_areas(path)
    except (SceneError, OSError) as error:
        return (), {f"map that can't be read ({error})": 1}


def drivable_areas(path: Path) -> tuple[tuple[FloatArray, ...], Mapping[str, int]]:
    """Returns polygons `(k, 3)` without holes, at height 0 in the map's frame, whose union is the drivable area, and
    how many of its areas are left out, by reason. Raises `SceneError` for a file that is damaged or laid out
    differently.
    """
    try:
        layers = json.loads(path.read_bytes())
        nodes = {row["token"]: (row["x"], row["y"]) for row in layers["node"]}
        polygons = {row["token"]: row for row in layers["polygon"]}
        tokens = [token for row in layers["drivable_area"] for token in row["polygon_tokens"]]
    except (KeyError, TypeError, ValueError) as error:
        raise SceneError(
            f"{path}: drivable_area: {error!r}: no map expansion of version 1.3 or later; unpack it again"
        ) from error
    pieces: list[FloatArray] = []
    left_out: Counter[str] = Counter()
    for token in tokens:
        try:
            outline = _outline(polygons[token], nodes)
            parts = parts_of(outline)
        except (KeyError, TypeError, ValueError, shapely.errors.ShapelyError) as error:
            left_out[f"drivable area of the map that is no polygon ({path}: {error!r})"] += 1
            continue
        if not parts:
            left_out[f"drivable area of the map that has no area ({path})"] += 1
        elif not outline.is_valid:
            left_out[f"drivable area of the map that crosses itself, cut into its parts ({path})"] += 1
        pieces += (np.c_[part, np.zeros(len(part))] for part in parts)
    return tuple(pieces), left_out


def _outline(area: Any, nodes: Mapping[str, tuple[float, float]]) -> Any:
    """Returns an area as a polygon with its holes."""
    holes = [[nodes[token] for token in hole["node_tokens"]] for hole in area["holes"]]
    outline = shapely.Polygon([nodes[token] for token in area["exterior_node_tokens"]], holes)
    if not np.isfinite(shapely.get_coordinates(outline)).all():
        raise ValueError("a node that is nowhere")
    return outline
