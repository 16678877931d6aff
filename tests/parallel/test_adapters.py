"""Low-rank adapters train on a mesh as in a single process, with and without a checkpoint between."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parallel import ranks
from tests.parallel.test_meshes import result
from tests.processes import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MESHES = {"alone": {"replicate": 1, "shard": 1, "tensor": 1}, "sharded": {"replicate": 1, "shard": 2, "tensor": 1}}
RATE = "curriculum.stages.broad.lr=0.00003"
VARIANT = ["data.micro_batch=8", "parallel/recompute=full", "model/adapters=lora", RATE]


def job(folder: Path, mesh: str, name: str, **facts: Any) -> dict[str, Any]:
    return {
        "mesh": MESHES[mesh], "variant": VARIANT, "out": str(folder / name),
        "saved": ranks.SAVED, "load": False, "checkpoints": None, "merged": True, **facts,
    }  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All steps on each mesh, and those of two ranks of which one process trains the last."""
    folder = tmp_path_factory.mktemp("adapters")
    kept = str(folder / "checkpoints")
    run_ranks(2, functools.partial(ranks.train_all, [job(folder, "sharded", "sharded", checkpoints=kept)]))
    resumed = job(folder, "alone", "resumed", checkpoints=kept, load=True)
    run_ranks(1, functools.partial(ranks.train_all, [job(folder, "alone", "alone"), resumed]))
    return folder


@pytest.mark.guarantee("Two sharded ranks train adapters as one process does, and one continues from their checkpoint")
def test_two_ranks_train_as_one_does(folder: Path) -> None:
    ours, alone = result(folder, "sharded"), result(folder, "alone")
    assert ours["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert ours["norms"] == pytest.approx(alone["norms"], rel=1e-4)
    weights, expected = (torch.load(folder / f"{name}.pt", weights_only=True) for name in ("sharded", "alone"))
    assert weights.keys() == expected.keys()
    moved = [float(value.abs().max()) for name, value in expected.items() if name.endswith("adapter.up")]
    assert len(moved) == 14
    assert min(moved) > 5e-4
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-5, atol=1e-5, msg=f"{name} differs")


def test_merged_weights_are_whole_wherever_they_are_sharded(folder: Path) -> None:
    trained = torch.load(folder / "sharded.pt", weights_only=True)
    found = {name.removeprefix("merged/"): trained.pop(name) for name in list(trained) if name.startswith("merged/")}
    prefix, layer = "backbone.", "model.language_model.layers.1.self_attn.o_proj."
    down, up = (trained[f"{prefix}{layer}adapter.{key}"] for key in ("down", "up"))
    expected = trained[f"{prefix}{layer}weight"] + 32 / 16 * up @ down
    torch.testing.assert_close(found[f"{layer}weight"], expected, rtol=1e-5, atol=1e-6)
    assert found.keys() - {"lm_head.weight"} == {
        name.removeprefix(prefix) for name in trained if name.startswith(prefix) and ".adapter." not in name
    }


@pytest.mark.guarantee("Two sharded ranks train adapters as one process does, and one continues from their checkpoint")
def test_one_process_goes_on_from_a_checkpoint_of_two_ranks(folder: Path) -> None:
    assert result(folder, "resumed")["losses"] == pytest.approx(
        result(folder, "alone")["losses"][ranks.SAVED :], rel=1e-5
    )
