"""Every family of backbones on meshes of two ranks: losses, gradient norms and weights of a single process."""

from __future__ import annotations

import functools
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parallel import ranks
from tests.processes import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

MESHES = {
    "single": {"replicate": 1, "shard": 1, "tensor": 1},
    "DDP 2": {"replicate": 2, "shard": 1, "tensor": 1},
    "FSDP 2": {"replicate": 1, "shard": 2, "tensor": 1},
    "TP 2": {"replicate": 1, "shard": 1, "tensor": 2},
}
RESUMED = "FSDP 2"
"""The mesh that goes on from a checkpoint."""
LAYERS = "model.backbone.architecture.text.num_hidden_layers"
FAMILIES = {
    "tiny_moe": [f"{LAYERS}=2", "model.backbone.router_loss=0.1"],
    "tiny_qwen3_5": [f"{LAYERS}=4"],
    "tiny_qwen3_5_moe": [f"{LAYERS}=4", "model.backbone.router_loss=0.1"],
}
"""Presets, with layers of each kind and a router loss that tells."""


def job(folder: Path, family: str, mesh: str, resumed: bool = False) -> dict[str, Any]:
    """What the ranks are told to do: all steps, packed on two replicas, or the last of them from the checkpoint."""
    batch = ["data.micro_batch=4", "data.pack=1536"] if mesh == "DDP 2" else ["data.micro_batch=8"]
    name = f"{family}-{mesh}".replace(" ", "")
    saved = str(folder / f"{name}-checkpoints") if mesh == RESUMED else None
    return {
        "mesh": MESHES[mesh], "variant": [f"model/backbone={family}", *FAMILIES[family], *batch],
        "out": str(folder / (name + "-resumed" * resumed)), "checkpoints": saved,
        "saved": ranks.SAVED, "load": resumed,
    }  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where everything that was trained lies."""
    folder = tmp_path_factory.mktemp("families")
    for world in (1, 2):
        here = [mesh for mesh, sizes in MESHES.items() if math.prod(sizes.values()) == world]
        jobs = [job(folder, family, mesh) for family, mesh in itertools.product(FAMILIES, here)]
        jobs += [job(folder, family, RESUMED, True) for family in FAMILIES if RESUMED in here]
        run_ranks(world, functools.partial(ranks.train_all, jobs))
    return folder


def result(folder: Path, family: str, name: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = json.loads((folder / f"{family}-{name}.json".replace(" ", "")).read_text())
    return found


@pytest.mark.guarantee("Every mesh trains as one process does, and a checkpoint of any mesh continues on any other")
@pytest.mark.parametrize(("family", "mesh"), itertools.product(FAMILIES, list(MESHES)[1:]))
def test_every_family_trains_on_a_mesh_as_in_a_single_process(family: str, mesh: str, folder: Path) -> None:
    found, alone = result(folder, family, mesh), result(folder, family, "single")
    assert len(found["losses"]) == ranks.STEPS
    assert found["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert found["norms"] == pytest.approx(alone["norms"], rel=1e-4)
    ours, theirs = (
        torch.load(folder / f"{family}-{name}.pt".replace(" ", ""), weights_only=True) for name in (mesh, "single")
    )
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], rtol=1e-4, atol=1e-5, msg=f"{key} differs")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_resumes_bit_for_bit(family: str, folder: Path) -> None:
    resumed = result(folder, family, f"{RESUMED}-resumed")["losses"]
    assert resumed == result(folder, family, RESUMED)["losses"][ranks.SAVED :]
    ours, whole = (
        torch.load(folder / f"{family}-{RESUMED}{end}.pt".replace(" ", ""), weights_only=True)
        for end in ("-resumed", "")
    )
    assert all(torch.equal(ours[key], whole[key]) for key in whole)
