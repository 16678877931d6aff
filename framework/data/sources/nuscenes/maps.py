"""The drivable area of nuScenes' map expansion, `maps/expansion/<location>.json` (version 1.3 on).

Layers are lists of rows joined by token, as the other tables: an area names polygons, a polygon the nodes of its
exterior and those of its holes, a node its x and y (m) in the map's frame.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from framework.scene.types import FloatArray, SceneError


def map_file(root: Path, location: str) -> Path:
    """Returns where the expansion of a location lies, whether or not it is there."""
    return root / "maps" / "expansion" / f"{location}.json"


@functools.lru_cache(maxsize=4)
def find_areas(path: Path) -> tuple[tuple[FloatArray, ...], str | None]:
    """Returns the `drivable_areas` of an expansion, and what is wrong where there are none. Cached, failures as well,
    since there are four maps of up to 60 MB.
    """
    if not path.is_file():
        return (), f"map that is not there: maps/expansion/{path.name}"
    try:
        return drivable_areas(path), None
    except (SceneError, OSError) as error:
        return (), f"map that can't be read ({error})"


def drivable_areas(path: Path) -> tuple[FloatArray, ...]:
    """Returns polygons `(k, 3)` without holes, at height 0 in the map's frame, whose union is the drivable area.
    Raises `SceneError` for a file that is damaged or laid out differently.
    """
    try:
        layers = json.loads(path.read_bytes())
        nodes = {row["token"]: (row["x"], row["y"]) for row in layers["node"]}
        polygons = {row["token"]: row for row in layers["polygon"]}
        areas = [polygons[token] for row in layers["drivable_area"] for token in row["polygon_tokens"]]
        outlines = [
            shapely.Polygon(
                [nodes[token] for token in area["exterior_node_tokens"]],
                [[nodes[token] for token in hole["node_tokens"]] for hole in area["holes"]],
            )
            for area in areas
        ]
    except (KeyError, TypeError, ValueError, shapely.errors.ShapelyError) as error:
        raise SceneError(
            f"{path}: drivable_area: {error!r}: no map expansion of version 1.3 or later; unpack it again"
        ) from error
    pieces = [piece for outline in outlines for piece in without_holes(shapely.make_valid(outline))]
    return tuple(
        np.c_[np.array(piece.exterior.coords)[:-1], np.zeros(len(piece.exterior.coords) - 1)] for piece in pieces
    )


def without_holes(area: Any) -> Iterator[Any]:
    """Yields polygons without holes that make up `area`: one with holes is cut through the middle of the first."""
    for polygon in getattr(area, "geoms", [area]):
        if polygon.geom_type != "Polygon":
            if hasattr(polygon, "geoms"):
                yield from without_holes(polygon)
            continue  # lines and points have no area
        if not polygon.interiors:
            yield polygon
            continue
        cut = shapely.Polygon(polygon.interiors[0]).centroid.x
        left, bottom, right, top = polygon.bounds
        for half in (shapely.box(left, bottom, cut, top), shapely.box(cut, bottom, right, top)):
            yield from without_holes(polygon.intersection(half))
