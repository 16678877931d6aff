"""The search space of a sweep, in the syntax of Hydra's Optuna sweeper, and the sweep's settings.

    lr=tag(log,interval(1e-6,1e-3)) steps=range(10,50,10) layers=int(interval(1,9)) model/adapters=choice(none,lora)

`interval` draws floats, or integers where it is cast by `int`. `range` draws integers, or multiples of a step, its end
included. `choice` and plain lists draw one of their values. `tag(log, ...)` draws on a logarithmic scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep

from framework.recipe.overrides import COMMAND_LINE, SETTING, SWEEPER, parse_words
from framework.recipe.problem import Problem, RecipeError, nearest

SWEEPERS = ("basic", "optuna")
"""Every combination of listed values, and a search."""

Direction = Literal["minimize", "maximize"]
Sampler = Literal["tpe", "random", "qmc", "nsgaii", "grid"]


@dataclass(frozen=True)
class Dimension:
    """One argument that a sweep draws."""

    key: str
    """The override's key, as written (`stage.lr`, `+task.x`, `model/adapters`)."""
    low: float | None = None
    """Lowest value, included; None where values are listed."""
    high: float | None = None
    """Highest value, included."""
    step: float | None = None
    """Distance of two values; None: any value between the ends."""
    log: bool = False
    """Whether values are drawn on a logarithmic scale."""
    integer: bool = False
    """Whether values are whole numbers."""
    choices: tuple[str, ...] = ()
    """The values of a list, in the syntax of overrides."""


@dataclass(frozen=True)
class SearchSettings:
    """The settings of `hydra/sweeper=optuna`, each an override `hydra.sweeper.NAME=VALUE`."""

    n_trials: int = 20
    """Trials of the study in all; a study that was stopped continues up to this number."""
    n_jobs: int | None = None
    """Trials of a batch, with launch=slurm: each batch is one job array, and the next one knows its results. None: as
    many as the launcher runs at once, `launch.at_once`."""
    direction: Direction | None = None
    """`minimize` or `maximize`; None: the recipe's `search_direction`."""
    sampler: Sampler = "tpe"
    """How trials are drawn."""
    seed: int = 0
    """The sampler's seed."""
    storage: str | None = None
    """An Optuna storage (`sqlite:///FILE`) or a journal file; None: `study.journal` in the sweep's folder."""
    study_name: str | None = None
    """The study's name in the storage; None: the sweep's name."""
    prune: bool = True
    """Whether a trial that is worse than the median at an evaluation ends there."""
    max_failure_rate: float = 1.0
    """Share of failed trials above which the sweep ends."""


@dataclass(frozen=True)
class Search:
    """A sweep as the command line gives it."""

    constants: tuple[str, ...]
    """The overrides that all trials share."""
    space: tuple[Dimension, ...]
    """What trials draw."""
    settings: SearchSettings
    """How."""


def ends(dimension: Dimension) -> tuple[str, str]:
    """The overrides of its first and its last value."""
    if dimension.choices:
        values: tuple[object, object] = (dimension.choices[0], dimension.choices[-1])
    else:
        number = int if dimension.integer else float
        values = (number(dimension.low or 0), number(dimension.high or 0))
    return f"{dimension.key}={values[0]}", f"{dimension.key}={values[1]}"


def is_search(overrides: Sequence[str]) -> bool:
    """Whether the command line asks for a search: `hydra/sweeper=optuna`."""
    return any(word.replace(" ", "") == f"{SWEEPER}=optuna" for word in overrides)


def read_search(overrides: Sequence[str]) -> Search:
    """The search that `overrides` describe. Raises `RecipeError` with all that is wrong with them."""
    problems: list[Problem] = []
    constants: list[str] = []
    space: list[Dimension] = []
    settings: dict[str, Any] = {}
    for override in parse_words(overrides, problems):
        key = override.get_key_element()
        if key == SWEEPER:
            continue
        if key.startswith(SETTING):
            _setting(key.removeprefix(SETTING), override, settings, problems)
        elif override.is_sweep_override():
            space.extend(_dimension(key, override, problems))
        else:
            constants.append(str(override.input_line))
    if not space and not problems:
        problems.append(
            Problem(COMMAND_LINE, "", "nothing to search: give a key several values, as lr=interval(1e-5,1e-3)")
        )
    if problems:
        raise RecipeError(problems)
    return Search(tuple(constants), tuple(space), SearchSettings(**settings))


def _setting(name: str, override: Override, settings: dict[str, Any], problems: list[Problem]) -> None:
    known = {each.name: each for each in fields(SearchSettings)}
    value = override.value()
    if name not in known:
        problem = Problem(COMMAND_LINE, SETTING + name, "the sweeper has no such setting", nearest(name, known))
        problems.append(problem)
        return
    wrong = _wrong(name, value)
    if wrong is None:
        settings[name] = value
    else:
        problems.append(Problem(COMMAND_LINE, SETTING + name, f"{value!r}: {wrong}"))


def _wrong(name: str, value: Any) -> str | None:
    """What is wrong with the value of a setting; None where nothing is."""
    choices = {"direction": get_args(Direction), "sampler": get_args(Sampler)}.get(name)
    if choices is not None:
        return None if value in choices else f"give one of {', '.join(choices)}"
    whole = isinstance(value, int) and not isinstance(value, bool)
    if name in ("n_trials", "n_jobs"):
        return None if whole and value >= 1 else "give a whole number from 1 on"
    if name == "seed":
        return None if whole and value >= 0 else "give a whole number from 0 on"
    if name == "prune":
        return None if isinstance(value, bool) else "give true or false"
    if name == "max_failure_rate":
        return None if isinstance(value, int | float) and 0 <= value <= 1 else "give a share in [0, 1]"
    return None if isinstance(value, str) else "give a text"


def _dimension(key: str, override: Override, problems: list[Problem]) -> list[Dimension]:
    value: Any = override.value()
    log = "log" in (getattr(value, "tags", None) or ())
    if isinstance(value, IntervalSweep):
        integer = all(isinstance(number, int) for number in (value.start, value.end))
        dimension = Dimension(key, float(value.start or 0), float(value.end or 0), None, log, integer)
    elif isinstance(value, RangeSweep) and not value.shuffle:
        integer = all(isinstance(number, int) for number in (value.start, value.stop, value.step))
        dimension = Dimension(key, float(value.start or 0), float(value.stop or 0), float(value.step), log, integer)
    elif isinstance(value, ChoiceSweep):
        return [Dimension(key, choices=tuple(override.sweep_string_iterator()))]
    else:
        problems.append(Problem(COMMAND_LINE, key, "a search draws from interval(), range(), choice() or a list"))
        return []
    assert dimension.low is not None
    assert dimension.high is not None
    if not dimension.low < dimension.high or (log and dimension.low <= 0):
        needs = "0 < low < high" if log else "low < high"
        problems.append(Problem(COMMAND_LINE, key, f"from {dimension.low:g} to {dimension.high:g}: give {needs}"))
        return []
    return [dimension]
