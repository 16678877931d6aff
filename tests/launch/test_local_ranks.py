"""The ranks that a run starts by itself."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from framework.launch.local_ranks import RankError, local_ranks, wanted_ranks
from tests import processes

STARTED = ("WORLD_SIZE", "SLURM_NTASKS", "CUDA_VISIBLE_DEVICES")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in STARTED:
        monkeypatch.delenv(name, raising=False)


def _recipe(**parallel: object) -> dict[str, object]:
    return {"task": {"parallel": {"devices": "auto", "accelerator": "auto", **parallel}}}


@pytest.mark.parametrize(
    ("recipe", "environment", "ranks"),
    [
        (_recipe(devices=2, accelerator="cpu"), {}, 2),
        (_recipe(), {}, 4),
        (_recipe(), {"CUDA_VISIBLE_DEVICES": "0,3"}, 2),
        (_recipe(), {"CUDA_VISIBLE_DEVICES": ""}, 1),
        (_recipe(), {"CUDA_VISIBLE_DEVICES": "-1"}, 1),
        (_recipe(), {"CUDA_VISIBLE_DEVICES": "1,2,-1,3"}, 2),
        (_recipe(accelerator="cpu"), {}, 1),
        (_recipe(devices=2), {"WORLD_SIZE": "1"}, 1),
        (_recipe(devices=2), {"SLURM_NTASKS": "8"}, 1),
        ({"task": {}}, {}, 1),
        ({}, {}, 1),
    ],
)
def test_each_device_of_a_training_run_gets_a_rank_unless_others_start_them(
    recipe: dict[str, object], environment: dict[str, str], ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for gpu in range(4):
        (tmp_path / f"0000:{gpu}").mkdir()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert wanted_ranks(recipe, gpus=tmp_path) == ranks


def _stand_in(folder: Path, script: str) -> str:
    """A program that takes the place of Python in the other ranks."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_ranks_agree_on_where_they_meet_and_end_with_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = f"env > {tmp_path}/$RANK; echo $$ $* > {tmp_path}/id; sleep 60"
    monkeypatch.setattr(sys, "executable", _stand_in(tmp_path, script))
    before, here = dict(os.environ), dict[str, str]()

    def block() -> None:
        with local_ranks(["recipe=demo"], 3, tmp_path / "run"):
            here.update(os.environ)
            while not ((tmp_path / "id").exists() and all((tmp_path / rank).exists() for rank in "12")):
                time.sleep(0.02)
            raise KeyError("of the block")

    with pytest.raises(KeyError, match="of the block"):
        block()
    assert here["RANK"] == "0"
    assert os.environ == before
    for rank in "12":
        there = dict(line.split("=", 1) for line in (tmp_path / rank).read_text().splitlines() if "=" in line)
        same = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "FRAMEWORK_ATTEMPT")
        assert {name: there[name] for name in same} == {name: here[name] for name in same}
        assert there["LOCAL_RANK"] == rank
    process, *words = (tmp_path / "id").read_text().split()
    assert words == ["-m", "framework", "recipe=demo"]
    assert not Path("/proc", process).exists()


def test_a_rank_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", _stand_in(tmp_path, "exit 3"))
    with pytest.raises(RankError, match="rank 1 ended with exit code 3"), local_ranks(["recipe=demo"], 2, tmp_path):
        pass


def test_one_rank_is_this_process(tmp_path: Path) -> None:
    with local_ranks(["recipe=demo"], 1, tmp_path):
        assert "RANK" not in os.environ or os.environ["RANK"] == "0"


@pytest.mark.slow
def test_a_run_of_two_ranks_is_started_by_one_command(tmp_path: Path) -> None:
    words = (*processes.SMALL_SUPERVISED, f"paths.runs={tmp_path}", "run.name=two", "curriculum.max_steps_per_stage=2")
    done = processes.run(processes.framework(*words, "parallel.devices=2", "~evals.held_out", "~evals.zero_shot"))
    assert done.returncode == 0, done.stderr
    assert "2 ranks on 1 node" in done.stdout
    assert "Traceback" not in done.stderr
