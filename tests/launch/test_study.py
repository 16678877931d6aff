"""A study draws, runs and ranks its trials, and continues after a kill."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from framework.launch.study import Study, trial_table
from framework.launch.sweep import search
from framework.recipe.catalogue import Catalogue
from framework.recipe.composition import Composition
from framework.recipe.problem import RecipeError
from framework.recipe.search import read_search
from framework.run.trial import report_metrics

optuna = pytest.importorskip("optuna", reason="optuna is not installed: the extra `search`")


METRIC = "held_out/drive/ade"


class Killed(BaseException):
    """Ends the process like a kill: nothing after it runs."""


def study(folder: Path, *words: str, direction: str = "minimize", prune: bool = False) -> Study:
    space = ("x=interval(-2,2)", "kind=choice(square,cube)")
    return Study(
        read_search((*space, *words, f"hydra.sweeper.prune={str(prune).lower()}")), "demo", folder, METRIC, direction
    )  # type: ignore[arg-type]


def square(overrides: tuple[str, ...], name: str) -> None:
    report_metrics({METRIC: value_of(overrides), "held_out/drive/fde": 7.0}, 10)


def value_of(overrides: tuple[str, ...]) -> float:
    values = dict(word.split("=") for word in overrides)
    return abs(float(values["x"])) ** (2 if values["kind"] == "square" else 3)


def test_trials_are_ranked_by_their_figure(tmp_path: Path) -> None:
    rows = study(tmp_path, "hydra.sweeper.n_trials=5", "c=1").run(square)
    assert len(rows) == 5
    assert [row.value for row in rows] == sorted(value_of(row.overrides) for row in rows)
    printed = trial_table(rows, "held_out/drive/ade").splitlines()
    assert printed[0].split() == ["rank", "trial", "held_out/drive/ade", "state", "overrides"]
    assert [line.split()[0] for line in printed[1:]] == list("12345")


def test_the_largest_may_be_the_best(tmp_path: Path) -> None:
    rows = study(tmp_path, "hydra.sweeper.n_trials=4", direction="maximize").run(square)
    values = [row.value or 0.0 for row in rows]
    assert values == sorted(values, reverse=True)


def test_a_killed_study_continues_to_the_requested_number(tmp_path: Path) -> None:
    ran: list[tuple[str, tuple[str, ...]]] = []

    def dies(overrides: tuple[str, ...], name: str) -> None:
        ran.append((name, overrides))
        if len(ran) == 4:
            raise Killed
        square(overrides, name)

    words = ("hydra.sweeper.n_trials=6", "hydra.sweeper.sampler=random")
    with pytest.raises(Killed):
        study(tmp_path, *words).run(dies)
    rows = study(tmp_path, *words).run(dies)
    assert len(rows) == 6
    assert len(ran) == 7
    assert ran[4] == ran[3], "the trial that was lost runs again, under its name"
    assert len({overrides for _, overrides in ran}) == 6, "no trial is drawn twice"
    assert sorted({name for name, _ in ran}) == [f"trial-{number:04d}" for number in range(6)]
    assert study(tmp_path, *words).run(dies) == rows, "a finished study runs nothing"


def test_failed_and_non_finite_trials_are_told_apart(tmp_path: Path) -> None:
    outcomes = iter([1.0, math.nan, math.inf, RuntimeError("no memory"), None, 0.5])

    def runs(overrides: tuple[str, ...], name: str) -> None:
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        if outcome is not None:
            report_metrics({METRIC: outcome}, 10)

    rows = study(tmp_path, "hydra.sweeper.n_trials=6").run(runs)
    assert [row.state for row in rows[:2]] == ["complete", "complete"]
    assert sorted(row.state for row in rows[2:]) == ["failed", "failed", "non-finite", "non-finite"]
    text = trial_table(rows, "loss")
    assert "failed: RuntimeError: no memory" in text
    assert f"non-finite: {METRIC} is nan" in text
    assert f"failed: the run reported no {METRIC}" in text


@pytest.mark.slow
def test_a_search_in_which_a_trial_failed_says_so_and_exits_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def runs(composition: Composition) -> None:
        steps = composition.tree["curriculum"]["stages"]["broad"]["steps"]
        if steps == 2:
            raise RuntimeError("no memory")
        report_metrics({METRIC: float(steps)}, 10)

    words = ["recipe=sft_broad", f"paths.runs={tmp_path}", f"search_metric={METRIC}", "hydra/sweeper=optuna"]
    words += ["hydra.sweeper.sampler=random", "stage.steps=choice(2,2,1)", "hydra.sweeper.prune=false"]
    assert search([*words, "hydra.sweeper.n_trials=4"], Catalogue(), runs) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    counted = re.fullmatch(r"4 trials: (\d) complete, (\d) failed; hydra.sweeper.n_trials=(\d) draws others.*", last)
    assert counted, last
    complete, failed, wanted = map(int, counted.groups())
    assert complete + failed == 4
    assert wanted == 4 + failed


def test_too_many_failures_end_the_sweep(tmp_path: Path) -> None:
    def fails(overrides: tuple[str, ...], name: str) -> None:
        raise RuntimeError("always")

    with pytest.raises(RecipeError, match=r"3 trials failed, hydra.sweeper.max_failure_rate allows 2"):
        study(tmp_path, "hydra.sweeper.n_trials=10", "hydra.sweeper.max_failure_rate=0.2").run(fails)


def test_a_poor_trial_is_pruned_at_an_evaluation(tmp_path: Path) -> None:
    reached: list[int] = []

    def runs(overrides: tuple[str, ...], name: str) -> None:
        number = int(name.removeprefix("trial-"))
        figure = 100.0 if number == 5 else float(number)
        for step in (10, 20):
            report_metrics({METRIC: figure}, step)
        reached.append(number)

    rows = study(tmp_path, "hydra.sweeper.n_trials=6", prune=True).run(runs)
    assert 5 not in reached
    assert next(row for row in rows if row.number == 5).state == "pruned"
    unpruned = study(tmp_path / "other", "hydra.sweeper.n_trials=6").run(runs)
    assert {row.state for row in unpruned} == {"complete"}


def test_a_grid_has_every_combination_once(tmp_path: Path) -> None:
    search = read_search(("a=range(1,3)", "b=choice(x,y)", "hydra.sweeper.sampler=grid", "hydra.sweeper.n_trials=6"))
    seen: list[tuple[str, ...]] = []

    def runs(overrides: tuple[str, ...], name: str) -> None:
        seen.append(overrides)
        report_metrics({METRIC: 0.0}, 10)

    Study(search, "grid", tmp_path, METRIC, "minimize").run(runs)
    assert sorted(seen) == sorted((f"a={a}", f"b={b}") for a in (1, 2, 3) for b in "xy")


def test_another_direction_is_refused(tmp_path: Path) -> None:
    study(tmp_path, "hydra.sweeper.n_trials=1").run(square)
    with pytest.raises(RecipeError, match="exists, to minimize"):
        study(tmp_path, "hydra.sweeper.n_trials=2", direction="maximize")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("c=2",), "fixed c=1 then, c=2 now"),
        ((), "fixed c=1 then, nothing now"),
        (("c=1", "y=range(1,3)"), "space nothing then, y=1.0..3.0 by 1.0"),
    ],
)
def test_trials_of_another_search_are_not_ranked_together(tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    study(tmp_path, "hydra.sweeper.n_trials=2", "c=1").run(square)
    more = study(tmp_path, "hydra.sweeper.n_trials=3", "c=1", "launch.minutes=5").run(square)
    assert len(more) == 3, "the number of trials and the job may change"
    with pytest.raises(RecipeError) as refused:
        study(tmp_path, *words)
    assert told in str(refused.value)
    assert "give another run.name" in str(refused.value)
