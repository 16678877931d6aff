"""What a submission is made of: a plan for each scene, at the times that a benchmark asks for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from framework.evaluation.predictions import STATE
from framework.scene.types import FloatArray

NAMED = 5
"""Scenes that an error names."""
TOLERANCE_S = 1e-6


class Submission(Protocol):
    """The form of one benchmark."""

    needs_plans: bool
    """Whether it consists of plans; otherwise it is an agent that the benchmark runs."""

    def write(self, plans: Mapping[str, FloatArray], folder: Path) -> list[Path]:
        """Write the plans, `(time, 5)` as in `STATE` by the scene's name, to `folder`; returns the files.

        Raises `ValueError` with all that the benchmark would refuse.
        """
        ...

    def check(self, plans: Mapping[str, FloatArray], folder: Path) -> str:
        """Read what was written; returns what it holds. Raises `ValueError` where that is not `plans`."""
        ...


def plans_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, FloatArray]:
    """The plans `(time, 5)` of predictions, as in `STATE`, by the scene's name.

    Raises `ValueError` for scenes without a plan, and for names that are not unique: leaderboards want exactly one plan
    for each scene.
    """
    plans, without, twice = dict[str, FloatArray](), list[str](), list[str]()
    for row in rows:
        name = row.get("scene") or row["sample"]
        if row["plan"] is None:
            without.append(f"{name} ({row['error'] or 'no answer spells one'})")
        elif name in plans:
            twice.append(name)
        else:
            plans[name] = np.array([[state[key] for key in STATE] for state in row["plan"]])
    faults = [
        f"{len(names)} scenes {what}: {', '.join(names[:NAMED])}"
        for what, names in (("have no plan", without), ("are predicted twice", twice))
        if names
    ]
    if faults or not plans:
        raise ValueError(f"predictions: {'; '.join(faults) or 'there are none'}; predict again with task drive")
    return plans


def at_times(name: str, plan: FloatArray, times: FloatArray) -> FloatArray:
    """Positions and headings `(n, 3)` of `plan` at `times` `(n,)`, linear between its states and the origin at 0 s.

    Raises `ValueError` for a plan that ends earlier.
    """
    if plan[-1, 0] < times[-1] - TOLERANCE_S:
        raise ValueError(f"scene {name}: the plan ends at {plan[-1, 0]:g} s, before {times[-1]:g} s; plan further")
    known = np.concatenate([[0.0], plan[:, 0]])
    columns = [np.concatenate([[0.0], column]) for column in (plan[:, 1], plan[:, 2], np.unwrap(plan[:, 3]))]
    return np.stack([np.interp(times, known, column) for column in columns], axis=1)


def refuse_empty(form: str, values: Mapping[str, str | Sequence[str] | None]) -> None:
    """Raise `ValueError` with the names of all `values` that are empty."""
    if empty := [name for name, value in values.items() if not value]:
        raise ValueError(f"task.form: {form} needs {', '.join(empty)}; give task.form.{empty[0]}=...")
