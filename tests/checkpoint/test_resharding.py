"""A checkpoint of any mesh loads on any other, optimizer state included, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.checkpoint.launch import run

MESHES: dict[int, list[list[int]]] = {
    1: [[]],
    2: [[], [1, 2, 1], [2, 1, 1], [1, 1, 2]],
    4: [[1, 4, 1], [2, 2, 1], [1, 2, 2], [2, 1, 2], [4, 1, 1]],
}
"""Replicas, shards and cut tensors, by world size; none: whole on every rank."""


def move(folder: Path, worlds: list[int], meshes: dict[int, list[list[int]]] = MESHES) -> None:
    """Save and load on one world after the other, each time everything that the ones before left."""
    first, losses = "", list[list[float]]()
    for number, world in enumerate(worlds):
        job: dict[str, Any] = {"task": "reshard", "world": world, "meshes": meshes[world]}
        job |= {"folder": str(folder / "checkpoints"), "out": str(folder / f"out-{number}")}
        Path(job["folder"]).mkdir(exist_ok=True)
        for found in run(world, job):
            first = found["digests"].pop("the first", first)
            wrong = [way for way, digest in found["digests"].items() if digest != first]
            assert not wrong
            losses += found["losses"].values()
    for ours in losses:
        assert ours == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.slow
def test_from_one_rank_to_two_shards(tmp_path: Path) -> None:
    move(tmp_path, [1, 2], {1: [[]], 2: [[1, 2, 1]]})


@pytest.mark.slow
def test_between_all_meshes_of_one_two_and_four_ranks(tmp_path: Path) -> None:
    move(tmp_path, [1, 2, 4, 2, 1])
