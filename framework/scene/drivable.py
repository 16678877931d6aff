"""The drivable surface: the union of a scene's drivable polygons."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import shapely

from framework.scene.types import FloatArray

ROAD_TOLERANCE_M = 0.1
"""How far (m) the body may reach beyond the mapped surface: maps are simplified, and neighbouring polygons leave
hairline gaps."""


def drivable_surface(polygons: Iterable[FloatArray]) -> Any:
    """The union, a shapely geometry, of `polygons` `(k, 2)`; those that cross themselves are mended."""
    return shapely.union_all([shapely.make_valid(shapely.polygons(ring)) for ring in polygons])
