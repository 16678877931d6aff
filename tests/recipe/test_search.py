"""The search space and the settings of a sweep, read from the command line."""

from __future__ import annotations

import pytest

from framework.recipe.overrides import parse_overrides
from framework.recipe.problem import Problem, RecipeError
from framework.recipe.search import Dimension, SearchSettings, ends, is_search, read_search
from framework.recipe.sweep import sweep_runs


def test_every_form_of_the_plugins_syntax_is_read() -> None:
    search = read_search((
        "recipe=demo", "hydra/sweeper=optuna", "a=tag(log,interval(1e-6,1e-3))", "b=int(interval(1,9))",
        "c=range(1,5)", "d=range(0,1,step=0.25)", "e=choice(none,lora)", "f=1,2", "g=interval(1,9)", "h=3",
        "hydra.sweeper.n_trials=6", "hydra.sweeper.direction=maximize", "hydra.sweeper.sampler=random",
    ))  # fmt: skip
    assert search.constants == ("recipe=demo", "h=3")
    assert search.space == (
        Dimension("a", 1e-6, 1e-3, None, log=True),
        Dimension("b", 1, 9, None, integer=True),
        Dimension("c", 1, 5, 1, integer=True),
        Dimension("d", 0, 1, 0.25),
        Dimension("e", choices=("none", "lora")),
        Dimension("f", choices=("1", "2")),
        Dimension("g", 1, 9),
    )
    assert search.settings == SearchSettings(n_trials=6, direction="maximize", sampler="random")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a=1",), "nothing to search"),
        (("a=interval(3,1)",), "from 3 to 1: give low < high"),
        (("a=tag(log,interval(0,1))",), "give 0 < low < high"),
        (("a=glob(*)",), "draws from interval"),
        (("a=1,2", "hydra.sweeper.n_trails=3"), r"no such setting.*n_trials"),
        (("a=1,2", "hydra.sweeper.n_trials=0"), "whole number from 1 on"),
        (("a=1,2", "hydra.sweeper.n_trials=1.5"), "whole number from 1 on"),
        (("a=1,2", "hydra.sweeper.direction=up"), "give one of minimize, maximize"),
        (("a=1,2", "hydra.sweeper.max_failure_rate=2"), r"give a share in \[0, 1\]"),
        (("a=interval(1,",), r"has a \( without its \)"),
    ],
)
def test_what_is_wrong_is_told(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        read_search(words)


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        read_search(("a=interval(3,1)", "hydra.sweeper.n_trials=0", "hydra.sweeper.sampler=best"))
    assert len(caught.value.problems) == 3


def test_the_sweeper_is_chosen_by_name() -> None:
    assert is_search(("recipe=demo", "hydra/sweeper=optuna"))
    assert not is_search(("recipe=demo", "hydra/sweeper=basic", "-m"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a=1,2", "hydra/sweeper=optna"), r"hydra/sweeper: no sweeper 'optna'.*did you mean optuna"),
        (("a=interval(1,2)",), "a: interval.. is for a search: add hydra/sweeper=optuna"),
        (("a=1,2", "hydra.sweeper.n_trials=3"), "hydra.sweeper.n_trials: is of a search: add hydra/sweeper=optuna"),
    ],
)
def test_a_sweep_that_needs_a_search_says_so(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        sweep_runs(words)


def test_the_basic_sweeper_may_be_named() -> None:
    assert [run.overrides for run in sweep_runs(("a=1,2", "hydra/sweeper=basic"))] == [("a=1",), ("a=2",)]


def test_a_search_without_m_is_told_in_one_line() -> None:
    problems: list[Problem] = []
    assert list(parse_overrides(["hydra/sweeper=optuna", "hydra.sweeper.n_trials=3"], problems)) == []
    assert {problem.message for problem in problems} == {"is of a sweep: add -m"}


def test_a_dimensions_ends_are_its_first_and_last_values() -> None:
    space = read_search(("a=interval(0.5,2)", "b=range(1,9,2)", "c=choice(x,y,z)")).space
    assert [ends(dimension) for dimension in space] == [("a=0.5", "a=2.0"), ("b=1", "b=9"), ("c=x", "c=z")]


@pytest.mark.fault("names too long for a file")
@pytest.mark.fault("two runs of one name")
def test_every_run_of_a_sweep_has_a_name_of_its_own() -> None:
    swept = ("a='x y','x_y',x/y",)
    names = [run.suffix for run in sweep_runs((swept[0],))]
    assert len(set(names)) == len(names) == 3
    long = ",".join(f"name_{number}" * 40 for number in range(3))
    names = [run.suffix for run in sweep_runs((f"a={long}",))]
    assert len(set(names)) == 3
    assert max(map(len, names)) < 128


@pytest.mark.fault("two runs of one name")
@pytest.mark.parametrize("word", ["lr=1e-3,0.001", "seed=1,2,1"])
def test_a_value_that_is_listed_twice_is_refused(word: str) -> None:
    with pytest.raises(RecipeError, match="is listed twice: both runs would be one"):
        sweep_runs((word,))
