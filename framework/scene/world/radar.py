"""Radar of the built-in world: a few returns from what can be seen of each box, with radial velocity over ground."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from framework.scene.frames import rigid
from framework.scene.types import FloatArray, Radar
from framework.scene.world.rays import cast
from framework.scene.world.rig import RadarMount
from framework.scene.world.state import Snapshot

CROSS_SECTION = {
    "car": 10.0,
    "truck": 20.0,
    "bus": 20.0,
    "trailer": 18.0,
    "construction_vehicle": 18.0,
    "motorcycle": 3.0,
    "bicycle": 0.0,
}
"""Mean radar cross-section (dB m^2) by class; people, cones and the like return `SMALL`."""
SMALL = -5.0


def scan_radar(snapshot: Snapshot, rng: np.random.Generator, mount: RadarMount) -> Radar:
    """Returns in the sensor's frame, from boxes that are in range, in the field of view and not hidden; then clutter.

    Radial velocity is the target's velocity over ground along the ray to the return, positive when receding: as if
    the radar stood still.
    """
    origin, boxes = np.array(mount.position), snapshot.boxes
    aims, owner = _aim(boxes.values, rng)
    rays = (aims - origin) / np.linalg.norm(aims - origin, axis=1, keepdims=True)
    reach, target = cast(origin, rays, boxes.values)
    aside = np.abs(np.arctan2(rays[:, 1], rays[:, 0]))
    seen = (target == owner) & (reach <= mount.range_m) & (aside <= mount.field_of_view / 2)
    rays, reach, owner = rays[seen], reach[seen], owner[seen]
    radial = (rays[:, :2] * np.nan_to_num(boxes.values[owner, 7:9])).sum(axis=1)
    section = np.array([CROSS_SECTION.get(boxes.labels[k], SMALL) for k in owner])
    returns = np.concatenate([_measure(rays, reach, radial, section, rng, mount), _clutter(rng, mount)])
    return Radar(returns.astype(np.float32), rigid(np.eye(3), origin))


def _aim(boxes: FloatArray, rng: np.random.Generator) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """Points `(m, 3)` inside the boxes `(n, 9)`, more in longer ones, and whose they are `(m,)`."""
    counts = 1 + rng.poisson(np.minimum(boxes[:, 3], 6.0) / 2)
    owner = np.repeat(np.arange(len(boxes)), counts)
    offset = rng.uniform(-0.45, 0.45, (len(owner), 3)) * boxes[owner, 3:6]
    cos, sin = np.cos(boxes[owner, 6]), np.sin(boxes[owner, 6])
    turned = [cos * offset[:, 0] - sin * offset[:, 1], sin * offset[:, 0] + cos * offset[:, 1], offset[:, 2]]
    return boxes[owner, :3] + np.stack(turned, axis=1), owner


def _measure(
    rays: FloatArray,
    reach: FloatArray,
    radial: FloatArray,
    section: FloatArray,
    rng: np.random.Generator,
    mount: RadarMount,
) -> FloatArray:
    """Returns `(n, 5)` of hits `reach` metres along unit `rays`, with the radar's noise."""
    count = len(reach)
    reach = np.maximum(reach + rng.normal(0, mount.range_noise, count), 0.0)
    azimuth = np.arctan2(rays[:, 1], rays[:, 0]) + rng.normal(0, mount.azimuth_noise, count)
    flat = np.hypot(rays[:, 0], rays[:, 1])
    places = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), rays[:, 2]], axis=1) * reach[:, None]
    radial = radial + rng.normal(0, mount.velocity_noise, count)
    section = section + rng.normal(0, mount.section_noise, count)
    return np.concatenate([places, radial[:, None], section[:, None]], axis=1)


def _clutter(rng: np.random.Generator, mount: RadarMount) -> FloatArray:
    """Returns `(n, 5)` from nothing in particular, which stands still and is small."""
    count = int(rng.poisson(mount.clutter))
    azimuth = rng.uniform(-mount.field_of_view / 2, mount.field_of_view / 2, count)
    rays = np.stack([np.cos(azimuth), np.sin(azimuth), np.zeros(count)], axis=1)
    reach = rng.uniform(3.0, mount.range_m, count)
    return _measure(rays, reach, np.zeros(count), np.full(count, SMALL), rng, mount)
