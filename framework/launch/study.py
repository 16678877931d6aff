"""A hyperparameter study: Optuna draws trials, which run here one after another, and a storage keeps them.

`framework.launch.study_jobs` runs the trials of a study as jobs.

Hydra's sweeper plugin pins an old Optuna, repeats trials and loses them when the process is killed. Here Optuna's ask
and tell interface keeps every trial; a trial that a killed process left unfinished runs again in the same folder, where
its run continues.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.recipe.overrides import COMMAND_LINE
from framework.recipe.problem import Problem, RecipeError
from framework.recipe.search import Dimension, Direction, Search
from framework.run.trial import Pruned, reporting_to

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)

COMPLETE, PRUNED, FAILED, NON_FINITE = "complete", "pruned", "failed", "non-finite"
"""How trials end."""
NOTE = "note"
"""The user attribute of a trial that says why it has no figure."""
SEARCHED = "searched"
"""The user attribute of a study that says what it searches, and with which fixed overrides."""

RunTrial = Callable[[tuple[str, ...], str], None]
"""Runs the overrides of a trial under a name; raises what went wrong. The run reports its figures, see
`framework.run.trial`."""


@dataclass(frozen=True)
class TrialRow:
    """One trial as the table shows it."""

    number: int
    """The trial's number, from 0 on."""
    state: str
    """`complete`, `pruned`, `failed` or `non-finite`."""
    value: float | None
    """The figure; None where there is none."""
    overrides: tuple[str, ...]
    """What the trial drew."""
    note: str
    """Why there is no figure."""


class Study:
    """The trials of `search` in `storage`.

    Args:
        search: The space and the settings.
        name: The study's name, and the start of its runs' names.
        folder: Where the journal lies unless the settings name a storage.
        metric: The figure that is searched for: `EVAL/SECTION/FIGURE` (`held_out/drive/ade`).
        direction: Whether it is to become small or large.

    Raises `RecipeError` where Optuna is not installed, or where the storage holds a study of another direction, figure,
    space or other fixed overrides: their trials cannot be ranked together.
    """

    def __init__(self, search: Search, name: str, folder: Path, metric: str, direction: Direction) -> None:
        self.search = search
        self.metric = metric
        self.name = search.settings.study_name or name
        self.storage = _storage(search.settings.storage, folder)
        self.study = _open(search, self.name, self.storage, direction)
        self._refuse_another_search()

    def _refuse_another_search(self) -> None:
        """Remember what is searched. Raises `RecipeError` where the study has searched anything else so far."""
        fixed = sorted(word for word in self.search.constants if not word.lstrip("+~").startswith("launch"))
        now = {"figure": [self.metric], "fixed": fixed, "space": sorted(map(_text, self.search.space))}
        before = self.study.user_attrs.get(SEARCHED)
        if before is None:
            self.study.set_user_attr(SEARCHED, now)
            return
        changes = [
            f"{part} {', '.join(sorted({*then} - {*now[part]})) or 'nothing'} then, "
            f"{', '.join(sorted({*now[part]} - {*then})) or 'nothing'} now"
            for part, then in before.items()
            if then != now[part]
        ]
        if changes:
            message = f"the study {self.name!r} was of another search: {'; '.join(changes)}; give another run.name"
            raise RecipeError([Problem(COMMAND_LINE, "hydra/sweeper", message)])

    def run(self, run_trial: RunTrial) -> list[TrialRow]:
        """Run trials until the study has as many as were asked for; returns all of them, best first.

        Raises `RecipeError` once more trials failed than `max_failure_rate` allows.
        """
        for trial in self.unfinished():
            self._one(trial, run_trial)
        wanted = self.wanted()
        while len(self.finished()) < wanted:
            self._one(self.draw(), run_trial)
            self.refuse_failures()
        return self.rows()

    def wanted(self) -> int:
        """How many trials the study has in the end. Of a grid, every combination is enqueued."""
        wanted = self.search.settings.n_trials
        return min(wanted, self._enqueue_grid()) if self.search.settings.sampler == "grid" else wanted

    def draw(self) -> optuna.trial.Trial:
        """A new trial, with an argument for each dimension."""
        trial = self.study.ask()
        for dimension in self.search.space:
            suggest(trial, dimension)
        return trial

    def overrides(self, trial: optuna.trial.Trial) -> tuple[str, ...]:
        """The overrides that `trial` runs with."""
        return (*self.search.constants, *drawn(trial.params))

    def refuse_failures(self) -> None:
        """Raises `RecipeError` once more trials failed than `max_failure_rate` allows."""
        import optuna

        failed = self.study.get_trials(states=(optuna.trial.TrialState.FAIL,))
        allowed = self.search.settings.max_failure_rate * self.search.settings.n_trials
        if len(failed) > allowed:
            message = f"{len(failed)} trials failed, hydra.sweeper.max_failure_rate allows {allowed:g}"
            raise RecipeError([Problem(COMMAND_LINE, "hydra.sweeper.max_failure_rate", message)])

    def rows(self) -> list[TrialRow]:
        """All finished trials, best first; those without a figure last."""
        sign = 1 if self.study.direction.name == "MINIMIZE" else -1
        return sorted(
            (self._row(trial) for trial in self.finished()),
            key=lambda row: (row.state != COMPLETE, sign * (row.value or 0.0) if row.value is not None else math.inf),
        )

    def _one(self, trial: optuna.trial.Trial, run_trial: RunTrial) -> None:
        import optuna

        figures: list[float] = []
        try:
            with reporting_to(
                lambda reported, step: hear(trial, self.metric, self.search.settings.prune, figures, reported, step)
            ):
                run_trial(self.overrides(trial), trial_name(trial.number))
            tell_result(self.study, trial, self.metric, figures)
        except Pruned as error:
            log.info("%s was %s", trial_name(trial.number), error)
            tell(self.study, trial, optuna.trial.TrialState.PRUNED, note=str(error))
        except Exception as error:  # the other trials still run; the table says what failed
            if isinstance(error, RecipeError):
                log.error("trial %d failed: %s", trial.number, error)
            else:
                log.exception("trial %d failed", trial.number)
            note = f"failed: {type(error).__name__}: {error}".splitlines()[0]
            tell(self.study, trial, optuna.trial.TrialState.FAIL, note=note)

    def _enqueue_grid(self) -> int:
        """Enqueue every combination that the study does not have yet; returns how many there are."""
        axes = dict(_grid(self.search))
        combinations = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
        for combination in combinations:
            self.study.enqueue_trial(combination, skip_if_exists=True)
        return len(combinations)

    def unfinished(self) -> Iterator[optuna.trial.Trial]:
        """Trials that an earlier process began and did not end: they run again, and their runs continue."""
        import optuna

        for frozen in self.study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
            if frozen.params.keys() == {dimension.key for dimension in self.search.space}:
                yield optuna.trial.Trial(self.study, frozen._trial_id)
            else:  # killed while it was drawn
                self.study.tell(frozen.number, state=optuna.trial.TrialState.FAIL)

    def finished(self) -> list[optuna.trial.FrozenTrial]:
        """The trials that have ended, whatever came of them."""
        return [trial for trial in self.study.get_trials() if trial.state.is_finished() and trial.params]

    def _row(self, trial: optuna.trial.FrozenTrial) -> TrialRow:
        note = trial.user_attrs.get(NOTE, "")
        state = {"COMPLETE": COMPLETE, "PRUNED": PRUNED}.get(trial.state.name, FAILED)
        if note.startswith(NON_FINITE):
            state = NON_FINITE
        return TrialRow(trial.number, state, trial.value if state == COMPLETE else None, drawn(trial.params), note)


def trial_name(number: int) -> str:
    """The name of a trial's run below the study's."""
    return f"trial-{number:04d}"


def drawn(params: Mapping[str, Any]) -> tuple[str, ...]:
    """What a trial drew, as overrides."""
    return tuple(f"{key}={spelled(value)}" for key, value in params.items())


def hear(
    trial: optuna.trial.Trial,
    metric: str,
    prune: bool,
    figures: list[float],
    reported: Mapping[str, float],
    step: int,
) -> None:
    """Keep the figure of an evaluation in `figures`. Raises `Pruned` where the trial is worse there than the median."""
    if metric not in reported:
        return
    figure = reported[metric]
    figures.append(figure)
    if prune and math.isfinite(figure):
        trial.report(figure, step)
        if trial.should_prune():
            raise Pruned(f"pruned at step {step}, where {metric} was {figure:.6g}")


def tell_result(study: optuna.Study, trial: optuna.trial.Trial, metric: str, figures: Sequence[float]) -> None:
    """Tell the study that the run of `trial` ended by itself, having reported `figures`."""
    import optuna

    if not figures:
        tell(study, trial, optuna.trial.TrialState.FAIL, note=f"failed: the run reported no {metric}")
    elif math.isfinite(figures[-1]):
        tell(study, trial, optuna.trial.TrialState.COMPLETE, figures[-1])
    else:
        tell(study, trial, optuna.trial.TrialState.FAIL, note=f"non-finite: {metric} is {figures[-1]}")


def tell(
    study: optuna.Study,
    trial: optuna.trial.Trial,
    state: optuna.trial.TrialState,
    value: float | None = None,
    note: str = "",
) -> None:
    """Tell the study how `trial` ended. `note` says why it has no figure."""
    trial.set_user_attr(NOTE, note)
    study.tell(trial, value, state=state)


def suggest(trial: optuna.trial.Trial, dimension: Dimension) -> Any:
    """Draw one argument of a trial."""
    if dimension.choices:
        return trial.suggest_categorical(dimension.key, dimension.choices)
    assert dimension.low is not None
    assert dimension.high is not None
    if dimension.integer:
        step = 1 if dimension.step is None or dimension.log else int(dimension.step)
        return trial.suggest_int(dimension.key, int(dimension.low), int(dimension.high), step=step, log=dimension.log)
    apart = None if dimension.log else dimension.step
    return trial.suggest_float(dimension.key, dimension.low, dimension.high, step=apart, log=dimension.log)


def spelled(value: Any) -> str:
    """A drawn value in the syntax of overrides. Listed values are spelled so already."""
    return value if isinstance(value, str) else repr(value)


def trial_counts(rows: Sequence[TrialRow]) -> str:
    """How many trials ended in which way, in one line. Failed ones are among those that the study was to have."""
    count = Counter(row.state for row in rows)
    return f"{len(rows)} trials: {', '.join(f'{number} {state}' for state, number in count.items()) or 'none ran'}"


def trial_table(rows: list[TrialRow], metric: str) -> str:
    """The ranking of the trials."""
    head = ("rank", "trial", metric, "state", "overrides")
    cells = [head]
    for rank, row in enumerate(rows, 1):
        value = "" if row.value is None else f"{row.value:.6g}"
        place = str(rank) if row.state == COMPLETE else ""
        state = row.state if not row.note else row.note
        cells.append((place, str(row.number), value, state, " ".join(row.overrides)))
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join(lines)


def _storage(setting: str | None, folder: Path) -> str:
    """Where the study is kept: a URL, or the absolute path of a journal, which jobs on other nodes open too."""
    if setting is not None and "://" in setting:
        return setting
    return str((folder / "study.journal" if setting is None else Path(setting)).absolute())


def open_storage(storage: str) -> Any:
    """The Optuna storage that `Study.storage` names."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    if "://" in storage:
        return storage
    Path(storage).parent.mkdir(parents=True, exist_ok=True)
    return optuna.storages.JournalStorage(JournalFileBackend(storage))


def pruner() -> optuna.pruners.BasePruner:
    """Ends trials that are worse than the median of those before, from the fourth trial on."""
    import optuna

    return optuna.pruners.MedianPruner(n_startup_trials=3)


def _open(search: Search, name: str, storage: str, direction: Direction) -> optuna.Study:
    try:
        import optuna
    except ImportError as error:
        message = "optuna is not installed: pip install 'framework[search]'"
        raise RecipeError([Problem(COMMAND_LINE, "hydra/sweeper=optuna", message)]) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=open_storage(storage), study_name=name, direction=direction, load_if_exists=True, pruner=pruner()
    )
    # A sampler that starts from the same seed again would draw the trials that the study has.
    study.sampler = _sampler(search, search.settings.seed + len(study.get_trials()))
    if study.direction.name != direction.upper():
        message = f"the study {name!r} exists, to {study.direction.name.lower()}; give another hydra.sweeper.study_name"
        raise RecipeError([Problem(COMMAND_LINE, "hydra.sweeper.direction", message)])
    return study


def _text(dimension: Dimension) -> str:
    """What trials draw, in words that tell two spaces apart."""
    if dimension.choices:
        return f"{dimension.key}=choice({', '.join(dimension.choices)})"
    step = "" if dimension.step is None else f" by {dimension.step}"
    marks = " log" * dimension.log + " whole" * dimension.integer
    return f"{dimension.key}={dimension.low}..{dimension.high}{step}{marks}"


def _sampler(search: Search, seed: int) -> optuna.samplers.BaseSampler:
    import optuna

    samplers: Mapping[str, Callable[[], optuna.samplers.BaseSampler]] = {
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed),
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
        "qmc": lambda: optuna.samplers.QMCSampler(seed=search.settings.seed),
        "nsgaii": lambda: optuna.samplers.NSGAIISampler(seed=seed),
        "grid": lambda: optuna.samplers.RandomSampler(seed=seed),  # every combination is enqueued: it draws nothing
    }
    return samplers[search.settings.sampler]()


def _grid(search: Search) -> Iterator[tuple[str, list[Any]]]:
    for dimension in search.space:
        if dimension.choices:
            yield dimension.key, list(dimension.choices)
        elif dimension.step is not None:
            assert dimension.low is not None
            assert dimension.high is not None
            count = math.floor((dimension.high - dimension.low) / dimension.step + 1e-9) + 1
            values = [dimension.low + dimension.step * number for number in range(count)]
            yield dimension.key, [int(value) for value in values] if dimension.integer else values
        else:
            message = "a grid has no interval: give choice() or range()"
            raise RecipeError([Problem(COMMAND_LINE, dimension.key, message)])
