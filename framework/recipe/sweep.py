"""Hydra's multirun: one run for every combination of the values that overrides list, each in a folder of its own."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException

from framework.recipe.overrides import COMMAND_LINE, SETTING, SWEEPER, parse_words
from framework.recipe.problem import Problem, RecipeError, nearest
from framework.recipe.search import SWEEPERS

LONGEST = 100
"""Characters of a suffix before its hash; file systems allow 255 bytes."""


@dataclass(frozen=True, slots=True)
class SweepRun:
    """One run of a sweep."""

    overrides: tuple[str, ...]
    """All overrides of the run, each with a single value."""
    suffix: str
    """The part of the run's name that tells it from its siblings: `sweep-optimizer.lr=0.1`."""


def sweep_runs(overrides: Sequence[str]) -> list[SweepRun]:
    """The product of all values listed in `overrides` (`a=1,2 b=range(3)`), in Hydra's order.

    Raises `RecipeError`, also where a value is listed twice.
    """
    problems: list[Problem] = []
    words = list(parse_words(overrides, problems))
    if problems:
        raise RecipeError(problems)
    parsed = [each for each in words if not _sweeper(each)]
    try:
        if drawn := [each.get_key_element() for each in parsed if isinstance(each.value(), IntervalSweep)]:
            message = f"interval() is for a search: add {SWEEPER}=optuna, or list values"
            raise RecipeError(Problem(COMMAND_LINE, key, message) for key in drawn)
        (batch,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    except HydraException as error:
        raise RecipeError([Problem(COMMAND_LINE, "", str(error).splitlines()[0])]) from error
    swept = [override.get_key_element() for override in parsed if override.is_sweep_override()]
    runs = [SweepRun(tuple(run), _suffix([word for word in run if word.partition("=")[0] in swept])) for run in batch]
    names = [run.suffix for run in runs]
    if again := next((name for place, name in enumerate(names) if name in names[:place]), None):
        message = f"{again.removeprefix('sweep-')} is listed twice: both runs would be one; list each value once"
        raise RecipeError([Problem(COMMAND_LINE, "", message)])
    return runs


def _sweeper(override: Override) -> bool:
    """Whether the override chooses Hydra's basic sweeper. Raises `RecipeError` where it chooses or sets another."""
    key, value = override.get_key_element(), override.value()
    if key.startswith(SETTING):
        raise RecipeError([Problem(COMMAND_LINE, key, f"is of a search: add {SWEEPER}=optuna")])
    if key == SWEEPER and value not in SWEEPERS:
        message = f"no sweeper {value!r}; there are: {', '.join(SWEEPERS)}"
        raise RecipeError([Problem(COMMAND_LINE, key, message, nearest(str(value), SWEEPERS))])
    return key == SWEEPER


def _suffix(chosen: Sequence[str]) -> str:
    """A name that no other combination has: what a file name cannot hold, or has no room for, is told by a hash."""
    written = ",".join(chosen)
    name = re.sub(r"[^\w=.,+-]+", "_", written, flags=re.ASCII)
    if name == written and len(name) <= LONGEST:
        return f"sweep-{name}"
    digest = hashlib.sha256(written.encode()).hexdigest()[:8]
    return f"sweep-{name[:LONGEST]}-{digest}"
