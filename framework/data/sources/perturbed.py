"""Variants of a recorded dataset's scenes, for reinforcement learning on more than what was recorded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256

import numpy as np

from framework.data.sources.base import Frame, RecordedDataset, RecordedLog
from framework.data.sources.perturb import Spread, perturb
from framework.data.sources.version import code_version
from framework.recipe.component import component
from framework.recipe.ranges import PositiveCount
from framework.scene.types import Scene

LACKS = dict.fromkeys(("cameras", "lidar", "radar"), "the sensors recorded another scene than its variant")
LACKS |= dict.fromkeys(("questions", "caption", "thought"), "what was written is about another scene than its variant")
"""What belongs to the recorded moment."""


@component
@dataclass(frozen=True, kw_only=True)
class Perturbed(Spread):
    """A recorded dataset whose scenes are variants of the recorded ones (see `framework.data.sources.perturb`): road
    users begin elsewhere on their paths, or next to them, and drive at other speeds, and so does the ego. Let them
    react in simulation (`simulator/traffic=car_following`): their logs do not know each other any more.

    A variant has the annotated boxes as its perception, and no raw sensors. It depends on its scene's id and its number
    alone. Splits are those of the recorded logs.

    Raises `ValueError` for less than one variant, and bounds that are negative.
    """

    dataset: RecordedDataset
    """The dataset whose scenes are varied."""
    variants: PositiveCount = 4
    """Variants of each scene."""
    code: str = field(init=False, default="")
    """Version of the dataset's code: a change of it writes new shards."""

    def __post_init__(self) -> None:
        if self.variants < 1 or min(self.shift_m, self.lateral_m, self.speed, self.ego_lateral_m, self.ego_speed) < 0:
            raise ValueError(f"{self}: give at least one of variants, and for the bounds of what changes 0 or more")
        object.__setattr__(self, "code", code_version(type(self.dataset)))

    @property
    def lacks(self) -> Mapping[str, str]:
        """See `RecordedDataset`: what the dataset lacks but perception, and what belongs to the recorded moment."""
        return {name: why for name, why in self.dataset.lacks.items() if name != "perception"} | LACKS

    def find_logs(self, folder: str) -> Iterable[RecordedLog]:
        """See `RecordedDataset`: the dataset's logs, with each frame as often as it has variants."""
        return map(self._varied, self.dataset.find_logs(folder))

    def read_scene(self, frame: Frame) -> Scene:
        """See `RecordedDataset`."""
        path, place = frame
        scene = self.dataset.read_scene((path, place // self.variants))
        number = place % self.variants
        seed = int.from_bytes(sha256(f"{scene.id}/{number}".encode()).digest()[:8], "big")
        return replace(perturb(scene, self, np.random.default_rng(seed)), id=f"{scene.id}~{number}")

    def _varied(self, log: RecordedLog) -> RecordedLog:
        return replace(log, frames=tuple(self._frames(log)))

    def _frames(self, log: RecordedLog) -> Iterator[Frame]:
        return ((path, place * self.variants + number) for path, place in log.frames for number in range(self.variants))
