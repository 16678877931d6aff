"""The drivable polygons of a map: what has no area is left out, what crosses itself is mended, and both are counted."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import shapely

from framework.scene.drivable import LEAST_AREA_M2, ring_fault, without_holes
from framework.scene.types import FloatArray


def sound_areas(ring: FloatArray, what: str, place: str, counts: Counter[str]) -> tuple[FloatArray, ...]:
    """Returns which polygons `(k, 3)` a map's `ring` `(k, 3)` is: itself, its parts where it crosses itself, or none.

    One that is left out or mended is added to `counts` by the name of its kind, `what`, and its file, `place`.
    """
    if ring.ndim != 2 or ring.shape[1] != 3 or len(ring) < 3 or not np.isfinite(ring).all():
        counts[f"{what} without three points of x, y and z ({place})"] += 1
        return ()
    fault = ring_fault(ring[:, :2])
    if fault is None:
        return (ring,)
    parts = parts_of(shapely.polygons(ring)) if fault == "crosses itself" else ()
    counts[f"{what} that {fault}{', cut into its parts' if parts else ''} ({place})"] += 1
    return parts


def parts_of(area: Any) -> tuple[FloatArray, ...]:
    """Returns the polygons `(k, 2)`, or `(k, 3)` where it has heights, without holes that make up a shapely geometry;
    those without an area are left out.
    """
    parts = (part for part in without_holes(shapely.make_valid(area)) if part.area >= LEAST_AREA_M2)
    return tuple(shapely.get_coordinates(part, include_z=area.has_z)[:-1] for part in parts)
