"""Sweeps: every combination of listed values, or a search by Optuna; each run in a folder of its own."""

from __future__ import annotations

import shlex
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from framework.launch.launcher import Launcher, Slurm
from framework.launch.study import FAILED, Study, trial_counts, trial_table
from framework.launch.study_jobs import run_as_jobs
from framework.launch.submit import locked, submit
from framework.recipe.check import checked
from framework.recipe.instantiate import instantiate
from framework.recipe.overrides import COMMAND_LINE
from framework.recipe.problem import Problem, RecipeError, nearest
from framework.recipe.search import Search, ends, is_search, read_search
from framework.recipe.sweep import sweep_runs

if TYPE_CHECKING:
    from framework.recipe.catalogue import Catalogue
    from framework.recipe.composition import Composition

RunTask = Callable[["Composition"], None]
"""Runs the task of a composed recipe here."""


def sweep(words: Sequence[str], catalogue: Catalogue, run_task: RunTask) -> int:
    """Run the sweep that the command line describes; returns the exit code: 1 when a run failed.

    Raises `RecipeError` where a recipe of the sweep cannot run.
    """
    if stored := [word for word in words if word.startswith("run=")]:
        message = "-m needs recipe=NAME: a stored recipe is that of one run"
        raise RecipeError([Problem(COMMAND_LINE, stored[0], message)])
    return search(words, catalogue, run_task) if is_search(words) else combinations(words, catalogue, run_task)


def check_sweep(words: Sequence[str], catalogue: Catalogue) -> str:
    """Check the sweep that the command line describes as `sweep` does before its first run; returns one line on it.

    Raises `RecipeError` where a recipe of the sweep cannot run.
    """
    if not is_search(words):
        runs = [composition.config.run.name for composition in _combined(words, catalogue)]
        return f"no problems in {len(runs)} runs: {', '.join(runs)}"
    described, _, metric = _described(words, catalogue)
    keys = ", ".join(dimension.key for dimension in described.space)
    return f"no problems: {described.settings.n_trials} trials of {metric} over {keys}"


def combinations(words: Sequence[str], catalogue: Catalogue, run_task: RunTask) -> int:
    """Check every run of the sweep, then run one after another; failures are reported at the end."""
    compositions = _combined(words, catalogue)
    if compositions and compositions[0].is_submitted:
        return submit(compositions)
    outcomes = {}
    for composition in compositions:
        name = composition.config.run.name
        try:
            run_task(composition)
            outcomes[name] = "finished"
        except Exception as error:  # the others still run; the outcome is printed below and in the exit code
            outcomes[name] = f"failed: {type(error).__name__}: {error}"
            traceback.print_exc()
    for name, outcome in outcomes.items():
        print(f"{name}: {outcome}")
    finished = [name for name, outcome in outcomes.items() if outcome == "finished"]
    if len(finished) > 1:
        print(f"compare them: python -m framework compare {shlex.join(finished)}")
    return 0 if set(outcomes.values()) == {"finished"} else 1


def _combined(words: Sequence[str], catalogue: Catalogue) -> list[Composition]:
    """The checked recipe of every run. Raises `RecipeError` at the first that cannot run."""
    compositions = []
    for each in sweep_runs(words):
        name = checked(each.overrides, catalogue, warn=False).config.run.name
        compositions.append(checked((*each.overrides, f"run.name='{name}/{each.suffix}'"), catalogue))
    return compositions


def search(words: Sequence[str], catalogue: Catalogue, run_task: RunTask) -> int:
    """Search the space that the command line describes, and print the trials' ranking.

    A study that was stopped continues. Returns 1 when a trial failed, or none reported a finite figure.
    """
    described, base, metric = _described(words, catalogue)
    name, direction = str(base.config.run.name), described.settings.direction or base.tree["search_direction"]
    folder = Path(str(base.tree["run"]["folder"])).absolute()

    def compose(overrides: tuple[str, ...], trial: str) -> Composition:
        return checked((*overrides, f"run.name='{name}/{trial}'"), catalogue, warn=False)

    if base.is_submitted:
        described = _in_batches(described, base)
        with _searching(folder):
            study = Study(described, name, folder, metric, direction)
            rows = run_as_jobs(study, folder, compose, submit)
    else:
        _refuse_batches(described)
        study = Study(described, name, folder, metric, direction)
        rows = study.run(lambda overrides, trial: run_task(compose(overrides, trial)))
    failed = sum(row.state == FAILED for row in rows)
    remedy = f"; hydra.sweeper.n_trials={len(rows) + failed} draws others in place of those that failed"
    print(f"\n{trial_table(rows, metric)}\n")
    print(trial_counts(rows) + (remedy if failed and described.settings.sampler != "grid" else ""))
    return 0 if not failed and any(row.value is not None for row in rows) else 1


def _described(words: Sequence[str], catalogue: Catalogue) -> tuple[Search, Composition, str]:
    """The search, the recipe that its trials share, and the metric. Raises `RecipeError` where no trial can run."""
    described = read_search(words)
    base = checked(described.constants, catalogue)
    metric = base.tree.get("search_metric")
    if not isinstance(metric, str):
        message = "a search needs a metric to optimise: search_metric=held_out/drive/ade"
        raise RecipeError([Problem(base.origin(("search_metric",)), "search_metric", message)])
    evals = (base.tree.get("task") or {}).get("evals") or {}
    if metric.partition("/")[0] not in evals:
        message = f"{metric} is of no eval of the recipe; there are: {', '.join(evals) or 'none'}"
        near = nearest(metric.partition("/")[0], evals)
        raise RecipeError([Problem(base.origin(("search_metric",)), "search_metric", message, near)])
    _refuse_space(described, catalogue)
    return described, base, metric


def _refuse_space(described: Search, catalogue: Catalogue) -> None:
    """Raise `RecipeError` with the faults that the space brings whatever is drawn, before a trial fails by them."""
    found: list[tuple[Problem, ...]] = []
    for drawn in zip(*map(ends, described.space), strict=True):
        try:
            checked((*described.constants, *drawn), catalogue, warn=False)
        except RecipeError as error:
            found.append(error.problems)
        else:
            return
    first, last = found
    if both := [problem for problem in first if problem.key in {other.key for other in last}]:
        raise RecipeError(both)


def _in_batches(described: Search, base: Composition) -> Search:
    """The search with the size of its batches. Raises `RecipeError` for a launcher that has no job arrays."""
    launcher: Launcher = instantiate(base, ("launch",))
    if not isinstance(launcher, Slurm):
        message = "a search runs its trials here (leave launch out) or as job arrays (launch=slurm)"
        raise RecipeError([Problem(COMMAND_LINE, "launch", message)])
    if launcher.dry_run:
        message = "which trials a search submits depends on their results; leave it out, or -m"
        raise RecipeError([Problem(COMMAND_LINE, "launch.dry_run", message)])
    size = described.settings.n_jobs or launcher.at_once
    return replace(described, settings=replace(described.settings, n_jobs=size))


def _refuse_batches(described: Search) -> None:
    if described.settings.n_jobs is not None and described.settings.n_jobs > 1:
        message = "trials run here one after another; several at once need launch=slurm"
        raise RecipeError([Problem(COMMAND_LINE, "hydra.sweeper.n_jobs", message)])


@contextmanager
def _searching(folder: Path) -> Iterator[None]:
    """Two processes would submit the same trials. Raises `RecipeError` where another one runs the search."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder))
        except BlockingIOError as error:
            raise RecipeError([Problem(COMMAND_LINE, "hydra/sweeper", f"the search runs already: {error}")]) from error
        yield
