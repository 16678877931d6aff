"""The same training on every mesh: losses, gradient norms and weights of a single process, and resumption across."""

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
    "DDP 4": {"replicate": 4, "shard": 1, "tensor": 1},
    "FSDP 4": {"replicate": 1, "shard": 4, "tensor": 1},
    "HSDP 2 x 2": {"replicate": 2, "shard": 2, "tensor": 1},
    "TP 2": {"replicate": 1, "shard": 1, "tensor": 2},
    "FSDP 2 x TP 2": {"replicate": 1, "shard": 2, "tensor": 2},
    "HSDP 2 x 1 x TP 2": {"replicate": 2, "shard": 1, "tensor": 2},
}
VARIANTS = {
    "plain": ["data.micro_batch=8"],
    "accumulation and recomputation": ["data.micro_batch=1", "parallel/recompute=full"],
    "packing": ["data.micro_batch=4", "data.pack=1536"],
    "muon": [
        "data.micro_batch=8",
        "curriculum.stages.broad.optimizer._target_=framework.training.muon.Muon",
        "+curriculum.stages.broad.optimizer.matrix_rms=4.0",
        "curriculum.stages.broad.lr=1e-4",
        "curriculum.stages.broad.lr_factors={encoders.*: 1.0}",
    ],
}
PAIRS = [
    ("DDP 4", "FSDP 2 x TP 2", "plain"),
    ("FSDP 2 x TP 2", "HSDP 2 x 2", "plain"),
    ("HSDP 2 x 2", "HSDP 2 x 2", "plain"),
    ("FSDP 2 x TP 2", "FSDP 2 x TP 2", "muon"),
]
"""What mesh a checkpoint is of, and on which one goes on: another, and two times itself.
`tests/checkpoint/test_resharding.py` has every pair."""
SOME = {
    "accumulation and recomputation": ("single", "DDP 4", "HSDP 2 x 2", "FSDP 2 x TP 2"),
    "packing": ("single", "FSDP 4", "FSDP 2 x TP 2"),
    "muon": ("single", "FSDP 2 x TP 2"),
}
"""Variants that meshes do not change are trained on one rank, on several, and cut by tensors."""
TRAINED = [
    (mesh, variant) for mesh, variant in itertools.product(MESHES, VARIANTS) if mesh in SOME.get(variant, MESHES)
]
REFERENCES = (("single", "plain"), ("single", "muon"))
"""What the other meshes and variants are compared with."""


def name_of(*parts: str) -> str:
    return "-".join(parts).replace(" ", "")


def job(folder: Path, mesh: str, variant: str, written: str | None = None) -> dict[str, Any]:
    """What the ranks are told to do, whole or from the checkpoint that the mesh `written` left after `SAVED` steps."""
    name = name_of(mesh, variant) if written is None else name_of(written, "to", mesh, variant)
    kept = written or (mesh if (mesh, variant) in {(saved, of) for saved, _, of in PAIRS} else None)
    return {
        "mesh": MESHES[mesh], "variant": VARIANTS[variant], "out": str(folder / name),
        "checkpoints": kept and str(folder / name_of("checkpoints", kept, variant)), "saved": ranks.SAVED,
        "load": written is not None,
    }  # fmt: skip


def ranks_of(mesh: str) -> int:
    return math.prod(MESHES[mesh].values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where everything that was trained lies: each mesh and variant, and each resumption."""
    folder = tmp_path_factory.mktemp("meshes")
    for world in (1, 2, 4):
        jobs = [job(folder, mesh, variant) for mesh, variant in TRAINED if ranks_of(mesh) == world]
        jobs += [job(folder, read, of, written) for written, read, of in PAIRS if ranks_of(read) == world]
        run_ranks(world, functools.partial(ranks.train_all, jobs))
    return folder


def result(folder: Path, *name: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = json.loads((folder / f"{name_of(*name)}.json").read_text())
    return found


@pytest.mark.guarantee("Every mesh trains as one process does, and a checkpoint of any mesh continues on any other")
@pytest.mark.parametrize(("mesh", "variant"), [pair for pair in TRAINED if pair not in REFERENCES])
def test_every_mesh_trains_as_a_single_process_does(mesh: str, variant: str, folder: Path) -> None:
    reference = name_of("single", "muon" if variant == "muon" else "plain")
    found, alone = result(folder, mesh, variant), result(folder, reference)
    assert len(found["losses"]) == ranks.STEPS
    assert found["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert found["norms"] == pytest.approx(alone["norms"], rel=1e-4)
    ours, theirs = (
        torch.load(folder / f"{name}.pt", weights_only=True) for name in (name_of(mesh, variant), reference)
    )
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], rtol=1e-5, atol=1e-5, msg=f"{key} differs")


@pytest.mark.guarantee("Every mesh trains as one process does, and a checkpoint of any mesh continues on any other")
@pytest.mark.parametrize(("written", "read", "variant"), PAIRS)
def test_a_checkpoint_of_any_mesh_goes_on_on_any_other(written: str, read: str, variant: str, folder: Path) -> None:
    whole = result(folder, read, variant)["losses"]
    resumed = result(folder, written, "to", read, variant)["losses"]
    assert resumed == pytest.approx(whole[ranks.SAVED :], rel=1e-5)
    if written == read:
        assert resumed == whole[ranks.SAVED :]
