"""Work in forked processes gives what it gives here, and what fails there is left to whoever asked."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence

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
def test_neighbours_share_a_process_and_results_keep_their_order() -> None:
    found = in_processes(lambda numbers: [(number * number, os.getpid()) for number in numbers], range(5))
    assert [each[0] for each in found if each] == [0, 1, 4, 9, 16]
    processes = [each[1] for each in found if each]
    assert processes[:2] == [processes[0]] * 2
    assert processes[2:] == [processes[2]] * 3
    assert len({os.getpid(), *processes}) == 3


@pytest.mark.usefixtures("forks")
def test_each_cpu_has_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert len(set(in_processes(lambda numbers: [os.getpid()] * len(numbers), range(5)))) == 4


@pytest.mark.usefixtures("forks")
def test_what_fails_or_is_killed_has_no_result_and_the_others_have(capfd: pytest.CaptureFixture[str]) -> None:
    def work(numbers: Sequence[int]) -> list[int]:
        if 1 in numbers:
            raise ValueError("told by whoever repeats it")
        if 6 in numbers:
            os.kill(os.getpid(), signal.SIGKILL)
        return list(numbers)

    assert in_processes(work, range(4)) == [None, None, 2, 3]
    assert in_processes(work, range(4, 8)) == [4, 5, None, None]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("spoilt", ["cpus", "threads", "items"])
@pytest.mark.usefixtures("forks")
def test_nothing_is_forked_where_that_gains_nothing_or_is_unsafe(spoilt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if spoilt == "cpus":
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    if spoilt == "threads":
        monkeypatch.setattr(threading, "active_count", lambda: 2)
    items = range(1 if spoilt == "items" else 3)
    assert in_processes(list, items) == [None] * len(items)


@pytest.mark.slow
def test_stages_planned_at_once_are_planned_as_one_after_another(forks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    composition = compose(["recipe=supervised", "scale=tiny"], Catalogue())
    at_once = plan(composition)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert at_once == plan(composition)
    assert at_once.count("\nstage ") == 2
