"""How many workers a rank gets, and what is said when it waits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from framework.data.stream.worker_count import StepTimings, choose_workers, cores_of_rank, save_timings


@pytest.mark.parametrize(("render_s", "workers"), [(0.05, 1), (0.9, 3), (2.0, 6)])
def test_workers_keep_up_with_the_step_and_half_as_much_again(render_s: float, workers: int) -> None:
    assert StepTimings(step_s=0.5, wait_s=0.0, fetch_s=0.0, render_s=render_s).workers == workers


def test_what_an_attempt_measured_chooses_the_workers_of_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(32)))
    assert choose_workers(tmp_path, ranks=2) == 15
    save_timings(StepTimings(step_s=0.5, wait_s=0.0, fetch_s=0.1, render_s=0.8), tmp_path)
    assert choose_workers(tmp_path, ranks=2) == 3
    assert choose_workers(tmp_path, ranks=16) == 1
    assert cores_of_rank(64) == 1


@pytest.mark.guarantee("Waiting for data is measured at each step, and a warning names the remedy")
def test_waiting_is_put_down_to_its_cause() -> None:
    assert not StepTimings(step_s=1.0, wait_s=0.05, fetch_s=9.0, render_s=9.0).is_starved
    storage = StepTimings(step_s=1.0, wait_s=0.5, fetch_s=3.0, render_s=1.0)
    assert storage.is_starved
    assert "mostly on storage" in storage.advice(2, 8)
    assert "data.shard_prefetch_steps" in storage.advice(2, 8)
    rendering = StepTimings(step_s=1.0, wait_s=0.5, fetch_s=0.1, render_s=2.0)
    assert "set data.workers: 4" in rendering.advice(2, 8)
    assert "data.image_width" in rendering.advice(4, 8)
