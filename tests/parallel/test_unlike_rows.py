"""Ranks whose rows are unlike (text alone, images, videos, driving with its sensors) train as one process does."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parallel import unlike_ranks
from tests.processes import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MESHES = {
    "single": {"replicate": 1, "shard": 1, "tensor": 1},
    "DDP 2": {"replicate": 2, "shard": 1, "tensor": 1},
    "FSDP 2": {"replicate": 1, "shard": 2, "tensor": 1},
    "FSDP 4": {"replicate": 1, "shard": 4, "tensor": 1},
    "HSDP 2 x 2": {"replicate": 2, "shard": 2, "tensor": 1},
}


def ranks_of(mesh: str) -> int:
    return MESHES[mesh]["replicate"] * MESHES[mesh]["shard"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the result of each mesh lies, padded and packed."""
    folder = tmp_path_factory.mktemp("unlike")
    for world in (1, 2, 4):
        jobs: list[dict[str, Any]] = [
            {"mesh": MESHES[mesh], "packed": packed, "out": str(folder / f"{mesh}-{packed}")}
            for mesh in MESHES
            if ranks_of(mesh) == world
            for packed in (False, True)
        ]
        run_ranks(world, functools.partial(unlike_ranks.train_all, jobs), timeout=300)
    return folder


@pytest.mark.guarantee("A rank without images, videos or sensors trains with those that have them, as one process does")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("mesh", list(MESHES)[1:])
def test_unlike_ranks_train_as_one_process(mesh: str, packed: bool, folder: Path) -> None:
    found, alone = (json.loads((folder / f"{name}.json").read_text()) for name in (f"{mesh}-{packed}", "single-False"))
    assert len(found["losses"]) == unlike_ranks.STEPS
    assert found["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert found["norms"] == pytest.approx(alone["norms"], rel=1e-4)
    ours, theirs = (
        torch.load(folder / f"{name}.pt", weights_only=True) for name in (f"{mesh}-{packed}", "single-False")
    )
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], rtol=1e-5, atol=1e-5, msg=f"{key} differs")
