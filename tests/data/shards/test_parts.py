"""Parts of the work of writing shards: whole logs, tried again, finished once, and named when they fail."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.data.shards.parts import PartJob, Work, divide
from framework.data.shards.processes import TRIES
from framework.data.shards.summary import CURVATURE, SPEED, Summary
from framework.data.shards.writer import write_shards
from framework.data.stream.mixture import Shards, read_scenes
from framework.scene.types import Scene, SceneError, Trajectory
from tests.data.scenes import full_scene
from tests.data.stored import contents


def _scene(item: int) -> Iterator[Scene]:
    yield full_scene(f"scene-{item}", item)


def _fails(item: int, tries: Path, how: str) -> Iterator[Scene]:
    """Item 5 fails until `tries` holds a file named `mended`; each try is counted there."""
    if item == 5 and not (tries / "mended").exists():
        (tries / f"{len(list(tries.iterdir()))}").touch()
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("a reader's fault")
    yield from _scene(item)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(1, 6))
def test_a_log_stays_in_one_part_where_it_fits(logs: list[int], size: int) -> None:
    items = list(range(sum(logs)))
    parts = divide(Work(items, _scene, groups=[(f"split-{i}", length) for i, length in enumerate(logs)]), size)
    assert [item for part in parts for _, piece in part for item in piece] == items
    assert all(sum(len(piece) for _, piece in part) >= size for part in parts[:-1] if part[-1:] and len(part) > 1)
    for number, length in enumerate(logs):
        pieces = [piece for part in parts for split, piece in part if split == f"split-{number}"]
        assert len(pieces) == -(-length // size)
        assert sum(map(len, pieces)) == length


@pytest.mark.parametrize(("how", "workers", "reason"), [
    ("raises", 1, "RuntimeError: a reader's fault"),
    ("raises", 2, "RuntimeError: a reader's fault"),
    ("killed", 2, "SIGKILL"),
])  # fmt: skip
@pytest.mark.slow
def test_a_part_that_fails_is_tried_again_then_named_and_the_rest_is_written(
    how: str, workers: int, reason: str, tmp_path: Path
) -> None:
    folder, tries, whole = tmp_path / "shards", tmp_path / "tries", tmp_path / "whole"
    tries.mkdir()
    work = Work(list(range(8)), partial(_fails, tries=tries, how=how))
    write = partial(write_shards, work, folder, workers, part_items=2, quiet=True)
    with pytest.raises(SceneError, match=r"1 of 4 parts failed.*part-00002 \(2 items, 4 to 5\): .*" + reason):
        write()
    assert len(list(tries.iterdir())) == TRIES
    assert len(list(folder.glob("part-*/part.json"))) == 3
    assert not (folder / "index.json").exists()
    summary = write(without_failed=True)
    assert summary.records == 6
    assert "failed part-00002 (2 items, 4 to 5)" in str(summary)
    assert len(list(read_scenes(Shards(local=folder)))) == 6
    (tries / "mended").touch()
    assert write().failed == []
    write_shards(Work(work.items, _scene), whole, part_items=2, quiet=True)
    assert contents(folder) == contents(whole)


def test_a_part_is_finished_once_whoever_is_late(tmp_path: Path) -> None:
    job = PartJob(tmp_path, {0: [("train", [1, 2])]}, _scene, {})
    job.write(0)
    before = {path.name: path.stat().st_ino for path in (tmp_path / "part-00000").iterdir()}
    assert job.attempt(0) is None
    assert {path.name: path.stat().st_ino for path in (tmp_path / "part-00000").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["part-00000"]


def test_what_would_change_a_record_is_refused_by_name(tmp_path: Path) -> None:
    work = {name: Work([1], _scene, identity={"cameras": name, "lidar": "all"}) for name in ("front", "back")}
    write_shards(work["front"], tmp_path, quiet=True)
    with pytest.raises(SceneError, match="holds the shards of other work: cameras: front there, back now; write to"):
        write_shards(work["back"], tmp_path, quiet=True)
    with pytest.raises(SceneError, match="part_items: 32 there, 3 now"):
        write_shards(work["front"], tmp_path, part_items=3, quiet=True)


def test_the_summary_counts_splits_tasks_classes_speed_and_curvature(tmp_path: Path) -> None:
    radius, speed = 26.0, 7.3
    turned = -speed / 4 / radius * np.arange(1, 21)  # right, at 4 Hz
    circle = np.c_[-radius * np.sin(turned), radius * (np.cos(turned) - 1), turned, np.full(20, speed)]
    past = np.zeros((7, 4))
    past[:, 3] = speed

    def scenes(item: int) -> Iterator[Scene]:
        yield dataclasses.replace(full_scene(f"s{item}", item), history=Trajectory(past), future=Trajectory(circle))

    groups, tasks = [("train", 2), ("held_out", 1)], {"left": lambda scene: scene.id == "s0"}
    summary = write_shards(Work([0, 1, 2], scenes, groups=groups, tasks=tasks), tmp_path, part_items=1, quiet=True)
    assert summary.splits == {"train": 2, "held_out": 1}
    assert summary.tasks == {"train": {"left": 1}, "held_out": {}}
    assert summary.classes == {"car": 3, "bus": 3, "animal": 3}
    assert summary.histograms == {SPEED: {"7": 3}, CURVATURE: {"-0.04": 3}}
    assert Summary.read(tmp_path / "manifest.json") == summary
    assert json.loads((tmp_path / "manifest.json").read_text())["splits"] == {"train": 2, "held_out": 1}
