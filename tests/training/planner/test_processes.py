"""Work in forked processes gives what it gives here, and what fails there is left to whoever asked."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from framework.recipe.catalogue import Catalogue
from framework.recipe.compose import compose
from framework.training.planner.processes import in_processes
from framework.training.planner.report import plan


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two CPUs, and no threads: those of a test's runner hold no lock that the work needs."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(threading, "active_count", lambda: 1)


@pytest.mark.usefixtures("forks")
def test_each_item_has_a_process_of_its_own_and_results_keep_their_order() -> None:
    found = in_processes(lambda number: (number * number, os.getpid()), range(6))
    assert [each[0] for each in found if each] == [0, 1, 4, 9, 16, 25]
    assert len({os.getpid(), *(each[1] for each in found if each)}) == 7


@pytest.mark.usefixtures("forks")
def test_what_fails_or_is_killed_has_no_result_and_the_others_have(capfd: pytest.CaptureFixture[str]) -> None:
    def work(number: int) -> int:
        if number == 1:
            raise ValueError("told by whoever repeats it")
        if number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    assert in_processes(work, range(4)) == [0, None, None, 3]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("spoilt", ["cpus", "threads", "items"])
@pytest.mark.usefixtures("forks")
def test_nothing_is_forked_where_that_gains_nothing_or_is_unsafe(spoilt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if spoilt == "cpus":
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    if spoilt == "threads":
        monkeypatch.setattr(threading, "active_count", lambda: 2)
    items = range(1 if spoilt == "items" else 3)
    assert in_processes(lambda number: number + 1, items) == [None] * len(items)


@pytest.mark.slow
def test_stages_planned_at_once_are_planned_as_one_after_another(forks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    composition = compose(["recipe=supervised", "scale=tiny"], Catalogue())
    at_once = plan(composition)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert at_once == plan(composition)
    assert at_once.count("\nstage ") == 2
