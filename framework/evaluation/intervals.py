"""Confidence intervals of evaluations' figures, and of the difference of two. Pure functions.

Shares of scenes have intervals of their counts. Other figures, and differences of two runs on the same scenes, are
resampled by scene. Where only figures by scenario kind are known, kinds are resampled: scenes of a kind resemble one
another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from framework.scene.types import FloatArray

Z = 1.959963984540054
"""The standard normal's 97.5 % quantile: intervals hold 95 %."""
RESAMPLES = 4000
"""Draws of a bootstrap."""
RESAMPLED_AT_ONCE = 200
"""Draws that are in memory at a time."""
FEWEST = 4
"""Kinds or scenes below which resampling says nothing."""
FEWEST_CHANGED = 6
"""Scenes that must differ between two runs: of fewer even a sign test cannot reject chance at 5 %."""


class Interval(NamedTuple):
    """A 95 % confidence interval."""

    low: float
    """Lower end."""
    high: float
    """Upper end."""


def wilson(share: float, count: float) -> Interval:
    """The interval of a share of `count` scenes (Wilson 1927, J. Am. Stat. Assoc. 22). For the mean of values between 0
    and 1 it is too wide, because no such values vary more than those of a share."""
    middle = share + Z**2 / (2 * count)
    half = Z * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    scale = 1 + Z**2 / count
    low, high = (middle - half) / scale, (middle + half) / scale
    return Interval(0.0 if share == 0 else low, 1.0 if share == 1 else high)  # rounding would leave 1e-16


def share_difference(old: float, old_count: float, new: float, new_count: float) -> Interval:
    """The interval of the difference `new - old` of two shares, as of other scenes (Newcombe 1998, Stat. Med. 17,
    method 10). For two runs that succeed on the same scenes it is too wide.
    """
    before, after = wilson(old, old_count), wilson(new, new_count)
    change = independent(Interval(before.low - old, before.high - old), Interval(after.low - new, after.high - new))
    return Interval(new - old + change.low, new - old + change.high)


def independent(old: Interval, new: Interval) -> Interval:
    """The interval of the difference `new - old` of two figures of other scenes. All three are relative to what they
    are the intervals of (Newcombe 1998)."""
    return Interval(-math.hypot(new.low, old.high), math.hypot(new.high, old.low))


def bootstrap(values: Mapping[str, float], counts: Mapping[str, float]) -> Interval | None:
    """The interval of the mean of `values` by kind or scene, weighted by `counts`, relative to it: percentiles of
    resampled kinds (Efron 1979, Ann. Stat. 7). None for fewer than `FEWEST`.
    """
    names = [name for name in values if counts.get(name)]
    if len(names) < FEWEST:
        return None
    figures = np.array([values[name] for name in names])
    weights = np.array([counts[name] for name in names])
    generator = np.random.default_rng(0)
    parts = []
    for _ in range(0, RESAMPLES, RESAMPLED_AT_ONCE):
        chosen = generator.integers(0, len(names), (RESAMPLED_AT_ONCE, len(names)))
        parts.append((figures * weights)[chosen].sum(axis=1) / weights[chosen].sum(axis=1))
    means: FloatArray = np.concatenate(parts)
    low, high = np.quantile(means - (figures * weights).sum() / weights.sum(), [0.025, 0.975])
    return Interval(float(low), float(high))


def over_scenes(scenes: Mapping[str, tuple[float, float]]) -> Interval | None:
    """The interval of the mean over scenes, {scene: (value, weight)}, relative to it; see `bootstrap`."""
    return bootstrap(*_split(scenes))


def over_scene_pairs(old: Mapping[str, tuple[float, float]], new: Mapping[str, tuple[float, float]]) -> Interval | None:
    """The interval of the difference of two means over the same scenes, relative to it: scenes are resampled in pairs,
    so that what makes a scene hard for both does not count as noise. None where some scenes differ, but fewer than
    `FEWEST_CHANGED`: resampling so few says more than they tell."""
    (before, weights), (after, _) = _split(old), _split(new)
    changes = {scene: after[scene] - before[scene] for scene in before}
    changed = sum(change != 0.0 for change in changes.values())
    return None if 0 < changed < FEWEST_CHANGED else bootstrap(changes, weights)


def _split(scenes: Mapping[str, tuple[float, float]]) -> tuple[dict[str, float], dict[str, float]]:
    return {name: value for name, (value, _) in scenes.items()}, {name: weight for name, (_, weight) in scenes.items()}


def shifted(interval: Interval | None, by: float) -> Interval | None:
    """`interval`, moved by `by`."""
    return None if interval is None else Interval(interval.low + by, interval.high + by)


def excludes_zero(interval: Interval | None) -> bool:
    """Whether a difference with this interval exceeds the noise."""
    return interval is not None and not interval.low <= 0.0 <= interval.high
