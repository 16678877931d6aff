"""What a folder of shards holds, as counts that parts add up to: the manifest."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from framework.data.shards.record import SCHEMA_VERSION
from framework.scene.types import Scene

PARTS_OF_A_SCENE = ("cameras", "lidar", "radar", "boxes", "history", "future", "surroundings", "thought")
"""Fields of a scene that a record may lack, and that are counted."""
SPEED, CURVATURE = "speed (m/s)", "sharpest curvature ahead (1/m)"
WIDTHS = {SPEED: 1.0, CURVATURE: 0.005}
"""What is measured of a record's ego, with the width of a histogram's bins."""
SHARPEST = 0.2
"""Curvatures beyond this (1/m), a radius of 5 m, share its bin."""
LEAST_STEP = 0.25
"""Metres between two states below which their headings say nothing of curvature."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A record that was not written."""

    source: str
    """The work item or scene it came from."""
    reason: str
    """What is wrong with it."""


@dataclass(slots=True)
class Summary:
    """The contents of a folder of shards."""

    records: int = 0
    """Records written."""
    kinds: dict[str, int] = field(default_factory=dict)
    """Records by scenario kind."""
    datasets: dict[str, int] = field(default_factory=dict)
    """Records by dataset."""
    skipped: list[Skipped] = field(default_factory=list)
    """Records not written."""
    unmapped: dict[str, int] = field(default_factory=dict)
    """Annotations of classes missing from `CLASSES`, by class."""
    dropped: dict[str, int] = field(default_factory=dict)
    """What else was read and left out, by name: sensors, frames, boxes without a point."""
    parts: dict[str, int] = field(default_factory=dict)
    """Records that have each of `PARTS_OF_A_SCENE`: which tasks they can serve follows from it."""
    schema: int = SCHEMA_VERSION
    """Version of the records."""
    failed: list[str] = field(default_factory=list)
    """Parts that are missing, each with the reason."""
    splits: dict[str, int] = field(default_factory=dict)
    """Records by split, as far as it is known."""
    tasks: dict[str, dict[str, int]] = field(default_factory=dict)
    """By split the records that support each of the tasks that were asked for."""
    classes: dict[str, int] = field(default_factory=dict)
    """Annotated boxes by class."""
    histograms: dict[str, dict[str, int]] = field(default_factory=dict)
    """By measure of `WIDTHS` the records in each bin, which is named by its lower edge."""

    @classmethod
    def of(cls, scene: Scene, split: str = "", tasks: Mapping[str, Callable[[Scene], bool]] | None = None) -> Summary:
        """Returns the summary of a single record of a split; `tasks` say whether a scene supports them."""
        unmapped, dropped = (json.loads(scene.provenance.get(name, "{}")) for name in ("unmapped", "dropped"))
        return cls(
            records=1,
            kinds={scene.kind: 1},
            datasets={scene.provenance.get("dataset", "unknown"): 1},
            unmapped=unmapped,
            dropped=dropped,
            parts={name: 1 for name in PARTS_OF_A_SCENE if getattr(scene, name) not in (None, ())},
            splits={split: 1} if split else {},
            tasks={split: {name: 1 for name, supports in (tasks or {}).items() if supports(scene)}} if tasks else {},
            classes=dict(Counter(scene.boxes.labels)) if scene.boxes is not None else {},
            histograms={name: {_bin(name, value): 1} for name, value in _measured(scene).items()},
        )

    @classmethod
    def read(cls, path: Path) -> Summary:
        """Returns the summary in a JSON file, a part's or a folder's manifest."""
        facts = json.loads(path.read_text())
        return cls(**facts | {"skipped": [Skipped(**item) for item in facts["skipped"]]})

    def add(self, other: Summary) -> None:
        """Adds another part's counts."""
        self.records += other.records
        self.skipped += other.skipped
        self.failed += other.failed
        for each in fields(self):
            ours, theirs = getattr(self, each.name), getattr(other, each.name)
            if isinstance(ours, dict):
                setattr(self, each.name, _sum(ours, theirs))

    def __str__(self) -> str:
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        lines = [f"{self.records} record{'' if self.records == 1 else 's'} written{skipped}"]
        if self.kinds:
            lines.append(f"  {_listed(self.kinds)}")
        if everywhere := sorted(name for name, count in self.parts.items() if count == self.records):
            lines.append(f"  each with {', '.join(everywhere)}")
        lines += [f"  {count} with {name}" for name, count in sorted(self.parts.items()) if name not in everywhere]
        lines += [f"  split {split}: {count} records" for split, count in sorted(self.splits.items())]
        lines += [f"  tasks{f' of {split}' if split else ''}: {_listed(of)}" for split, of in self.tasks.items() if of]
        lines += [f"  failed {part}" for part in self.failed]
        lines += [f"  skipped {item.source}: {item.reason}" for item in self.skipped]
        if self.unmapped:
            lines.append(f"  annotations without a class of ours: {_listed(self.unmapped)}")
        lines += [f"  left out: {name}: {count}" for name, count in sorted(self.dropped.items())]
        return "\n".join(lines)


def _sum(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Adds counts, or counts by name."""
    total = dict(ours)
    for name, value in theirs.items():
        total[name] = _sum(ours.get(name, {}), value) if isinstance(value, dict) else ours.get(name, 0) + value
    return total


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def _measured(scene: Scene) -> dict[str, float]:
    """Returns the ego's speed at the moment, and the curvature of its path that is largest in magnitude."""
    measures: dict[str, float] = {}
    if scene.history is not None:
        measures[SPEED] = float(scene.history.states[-1, 3])
    if scene.future is not None:
        states = np.asarray(scene.future.states, dtype=np.float64)
        steps = np.hypot(*np.diff(states[:, :2], axis=0).T)
        turns = (np.diff(states[:, 2]) + np.pi) % (2 * np.pi) - np.pi
        moved = steps >= LEAST_STEP
        curvature = turns[moved] / steps[moved]
        measures[CURVATURE] = float(curvature[np.abs(curvature).argmax()]) if len(curvature) else 0.0
    return measures


def _bin(name: str, value: float) -> str:
    """Returns the lower edge of the bin that holds a value."""
    width = WIDTHS[name]
    bounded = min(max(value, -SHARPEST), SHARPEST) if name == CURVATURE else value
    return f"{np.floor(bounded / width + 1e-9) * width + 0.0:.6g}"
