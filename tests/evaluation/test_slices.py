"""Slices by kind, and the merging of ranks through torchmetrics, with a rank that saw nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from framework.evaluation import slices
from framework.evaluation.slices import SceneMeasures, largest, mean
from framework.evaluation.suite import Suite
from framework.scene.types import SceneError
from tests.evaluation.scenes import make_scene


def test_names_travel_as_bytes() -> None:
    rows = torch.cat([slices.name_row(name) for name in ("curve", "", "überholen")])
    assert slices.row_names(rows).tolist() == ["curve", "", "überholen"]
    with pytest.raises(SceneError, match="longer than 64"):
        slices.name_row("x" * 65)


def test_reductions_leave_the_unknown_out() -> None:
    values = np.array([1.0, np.nan, 3.0])
    assert mean(values) == 2.0
    assert largest(values) == 3.0
    assert np.isnan(mean(np.array([np.nan])))
    assert np.isnan(largest(np.array([])))


def test_measures_by_kind() -> None:
    metric = SceneMeasures({"a": mean, "b": largest})
    for index, (kind, a, b) in enumerate([("curve", 1.0, 5.0), ("straight", 3.0, 7.0), ("curve", np.nan, 6.0)]):
        metric.update(make_scene(id=str(index), kind=kind), {"a": a, "b": b})
    assert metric.compute() == {
        "a": {"all": 2.0, "curve": 1.0, "straight": 3.0},
        "b": {"all": 7.0, "curve": 6.0, "straight": 7.0},
        "scenes": {"all": 3.0, "curve": 2.0, "straight": 1.0},
    }


def test_a_sample_that_is_judged_again_counts_once() -> None:
    metric = SceneMeasures({"a": mean})
    for name, value in (("x", 1.0), ("y", 5.0), ("x", 9.0)):
        metric.update(make_scene(id=name, kind="curve"), {"a": value})
    counts = {"all": 2.0, "curve": 2.0}
    assert metric.compute() == {"a": {"all": 3.0, "curve": 3.0}, "scenes": counts, "repeated": {"all": 1.0}}


def test_a_scene_that_is_evaluated_again_changes_no_figure() -> None:
    once, twice = Suite(), Suite()
    fill(once, [0, 1, 2, 3, 4])
    fill(twice, [0, 1, 1, 2, 3, 4, 0])
    expected = once.compute()
    found = twice.compute()
    for section, methods in found.items():
        assert methods["model"]["repeated"] == {"all": 2.0}, section
        for sliced in methods.values():
            sliced.pop("repeated", None)
    assert found == expected


def test_worst_measure_by_measure() -> None:
    rows = [{"ade": 1.0, "comfortable": 1.0}, {"ade": 0.5, "comfortable": 0.0}]
    assert slices.worst(rows, better_high=["comfortable"]) == {"ade": 1.0, "comfortable": 0.0}


def fill(suite: Suite, indices: list[int]) -> None:
    for index in indices:
        scene = make_scene(id=f"scene-{index}", kind=("straight", "curve")[index % 2])
        suite.update(scene, "drive", "", scene.future if index % 3 else None)
        suite.update(scene, "detect", "", scene.boxes if index % 2 else None)
        suite.update(scene, "answer", str(index % 2), question=scene.questions[0])


def on_rank(rank: int, rendezvous: str, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    suite = Suite()
    fill(suite, [0, 1, 2, 3, 4] if rank == 0 else [])
    torch.save(suite.compute(), f"{folder}/{rank}")
    torch.distributed.destroy_process_group()


def test_ranks_merge_although_one_saw_nothing(tmp_path: Path) -> None:
    # Forked, because importing torch again in each rank takes most of a minute on a busy machine.
    mp.start_processes(on_rank, (f"file://{tmp_path}/rendezvous", str(tmp_path)), nprocs=2, start_method="fork")
    alone = Suite()
    fill(alone, [0, 1, 2, 3, 4])
    merged: list[dict[str, Any]] = [torch.load(tmp_path / str(rank)) for rank in range(2)]
    assert merged[0] == merged[1] == alone.compute()
    assert set(merged[0]) == {"drive", "detect", "answer"}
