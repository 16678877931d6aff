"""The drivable surface: the union of a scene's drivable polygons."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import shapely

from framework.scene.types import FloatArray

ROAD_TOLERANCE_M = 0.1
"""How far (m) the body may reach beyond the mapped surface: maps are simplified, and neighbouring polygons leave
hairline gaps."""
LEAST_AREA_M2 = 1e-6
"""Polygons of less area are lines or points, whose coordinates were rounded."""
CROSSED_SHARE = 0.01
"""The share of its area that a polygon may go around twice or the wrong way: bends that are narrower than a lane, and
rounding, cross an outline a little."""


def drivable_surface(polygons: Iterable[FloatArray]) -> Any:
    """The union, a shapely geometry, of `polygons` `(k, 2)`; those that cross themselves are mended."""
    return shapely.union_all([shapely.make_valid(shapely.polygons(ring)) for ring in polygons])


def ring_fault(ring: FloatArray) -> str | None:
    """What is wrong with a polygon `(k, 2)` of at least three finite points; None where nothing is.

    A ring that crosses itself is found by its signed area, in which parts that it goes around the other way count
    negative and those that it goes around twice count double: it differs from the area inside.
    """
    polygon = shapely.polygons(ring)
    inside = signed = float(shapely.area(polygon))
    if not shapely.is_valid(polygon):
        inside = float(shapely.area(shapely.make_valid(polygon)))
    if inside < LEAST_AREA_M2:
        return "has no area"
    return "crosses itself" if abs(inside - signed) > CROSSED_SHARE * inside else None


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
