"""Bodies that turn between two samples: where they are meanwhile, and when they touch, compared with shapely."""

from __future__ import annotations

import math

import numpy as np
import pytest
import shapely

from framework.scene.contact import even_motion, first_contact
from framework.scene.kinematics import box_footprints
from framework.scene.types import FloatArray

PERIOD = 0.25
"""Seconds between two samples."""
TRUCK = (12.0, 2.5)
AXLE = 0.3 * TRUCK[0]
"""How far the truck's centre is ahead of the axle about which it turns (m)."""


def truck(pace: float, rate: float, times: FloatArray) -> FloatArray:
    """`(time, 5)`: the truck that turns about its rear axle at `rate` (rad/s), while the axle drives at `pace` (m/s):
    a rotation about one point of the ground, in complex numbers."""
    if rate == 0:
        return np.array([[AXLE + pace * time, 0.0, 0.0, *TRUCK] for time in times])
    pivot = 1j * pace / rate
    centre = pivot + (AXLE - pivot) * np.exp(1j * rate * times)
    return np.column_stack([centre.real, centre.imag, rate * times, np.tile(TRUCK, (len(times), 1))])


@pytest.mark.fault("what happens between two samples")
@pytest.mark.parametrize("pace", [0.0, 2.0, 10.0])
@pytest.mark.parametrize("rate", [0.0, 1e-7, 0.5, -1.0, 2.0, -4.0])
def test_a_body_turns_about_one_point_between_two_samples(pace: float, rate: float) -> None:
    before, after = truck(pace, rate, np.array([0.0, PERIOD]))
    times = np.linspace(0.0, 1.0, 11)
    moved = even_motion(before[None], after[None]).at(times)
    np.testing.assert_allclose(moved, truck(pace, rate, times * PERIOD), atol=1e-7)


@pytest.mark.fault("what happens between two samples")
@pytest.mark.parametrize("rate", [1.0, -2.0, 4.0])
@pytest.mark.parametrize("depth", [0.003, 0.01, 0.1])
@pytest.mark.fast_cases(2)
def test_a_corner_that_sweeps_by_is_found_when_it_touches(rate: float, depth: float) -> None:
    corner = np.array([AXLE + TRUCK[0] / 2, math.copysign(TRUCK[1] / 2, rate)])
    reach, starts_at = math.hypot(*corner), math.atan2(corner[1], corner[0])
    posts = []
    for turned in np.linspace(0.15, 0.85, 8) * rate * PERIOD:  # when the corner points straight at the post
        bearing, away = starts_at + turned, reach + 0.1 - depth
        posts.append([away * math.cos(bearing), away * math.sin(bearing), bearing, 0.2, 0.2])
    standing = np.array(posts)
    before, after = truck(0.0, rate, np.array([0.0, PERIOD]))
    found = PERIOD * first_contact(even_motion(before[None], after[None]), even_motion(standing, standing))
    times = np.linspace(0.0, PERIOD, 25_001)
    bodies = shapely.polygons(box_footprints(truck(0.0, rate, times)))
    hits = shapely.intersects(bodies, shapely.polygons(box_footprints(standing))[:, None])
    assert hits.any(axis=1).all()
    np.testing.assert_allclose(found, times[hits.argmax(axis=1)], atol=2e-3)
