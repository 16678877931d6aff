"""How far a run has come: the checkpoint that it goes on from, and the recipe which that was trained with."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from framework.run.files import read_json
from framework.run.layout import CHECKPOINTS, RECIPE_FILE, SavedStep, committed_steps

_SUPERSEDED = re.compile(r"recipe\.attempt-(\d+)\.yaml")


def newest_saved(run: Path) -> SavedStep | None:
    """The newest committed checkpoint of the history of the run in folder `run`; None without one.

    It is not verified: the attempt that loads it may have to fall back to an older one.
    """
    saved = history(run)
    return saved[-1] if saved else None


def history(run: Path) -> list[SavedStep]:
    """The committed checkpoints of the history of the run in folder `run`, oldest first: without those of steps that a
    later attempt trains again.
    """
    checkpoints = run / CHECKPOINTS
    choices = [read_json(file) for file in (checkpoints / "attempts").glob("attempt-*.json")]
    resumed = [(int(choice["attempt"]), int(choice["step"])) for choice in choices if choice]
    return [each for each in committed_steps(checkpoints) if not abandoned(each.attempt, each.step, resumed)]


def abandoned(attempt: int, step: int, resumed: Iterable[tuple[int, int]]) -> bool:
    """Whether a checkpoint of `step` by `attempt` is off the run's history: a later attempt went on from an earlier
    step. `resumed` has each attempt with the step it went on from, -1 for a fresh start.
    """
    return any(later > attempt and start < step for later, start in resumed)


def saved_state(saved: SavedStep) -> dict[str, Any]:
    """What the checkpoint keeps in addition to tensors, the same on every rank."""
    state: dict[str, Any] = read_json(saved.folder / "state.json") or {}
    return state


def recipe_file_of(run: Path, attempt: int) -> Path:
    """The file of the recipe that `attempt` ran with: a later attempt with another recipe has set it aside."""
    set_aside = {int(match[1]): file for file in run.glob("recipe.attempt-*.yaml") if (match := _match(file))}
    later = [number for number in set_aside if number >= attempt]
    return set_aside[min(later)] if later else run / RECIPE_FILE


def _match(file: Path) -> re.Match[str] | None:
    return _SUPERSEDED.fullmatch(file.name)
