"""The same training on every mesh: losses, gradient norms and weights of a single process, and resumption across."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

RANKS = Path(__file__).with_name("ranks.py")
REPOSITORY = RANKS.parents[2]
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
    "accumulation": ["data.micro_batch=1"],
    "packing": ["data.micro_batch=4", "data.pack=1536"],
    "recomputation": ["data.micro_batch=8", "parallel/recompute=full"],
}
RESUMED = ("DDP 4", "FSDP 4", "HSDP 2 x 2", "FSDP 2 x TP 2")


def name_of(*parts: str) -> str:
    return "-".join(parts).replace(" ", "")


def job(folder: Path, mesh: str, variant: str, name: str, **facts: Any) -> dict[str, Any]:
    """What the ranks are told to do; they write `name`.json and the weights into `folder`."""
    return {
        "mesh": MESHES[mesh], "variant": VARIANTS[variant], "out": str(folder / f"{name}.json"), "folder": str(folder),
        "weights": str(folder / f"{name}.pt"), "checkpoints": str(folder / "none"), **facts,
    }  # fmt: skip


def run(folder: Path, ranks: int, jobs: list[dict[str, Any]]) -> None:
    """Have `ranks` processes do the jobs, one after the other."""
    told = folder / f"jobs-{ranks}.json"
    told.write_text(json.dumps(jobs))
    launch(RANKS, told, ranks)


def launch(program: Path, told: Path, ranks: int) -> None:
    """Run `program` on as many ranks, with `told` as its argument."""
    start = [sys.executable]
    if ranks > 1:
        start += ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    done = subprocess.run(
        [*start, str(program), str(told)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def ranks_of(mesh: str) -> int:
    return math.prod(MESHES[mesh].values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where everything that was trained lies: each mesh and variant, and each resumption."""
    folder = tmp_path_factory.mktemp("meshes")
    for ranks in (1, 2, 4):
        here = [mesh for mesh in MESHES if ranks_of(mesh) == ranks]
        jobs = [job(folder, mesh, variant, name_of(mesh, variant)) for mesh in here for variant in VARIANTS]
        resumed = [mesh for mesh in RESUMED if mesh in here]
        for mesh in resumed:
            kept = str(folder / name_of("checkpoints", mesh))
            jobs.append(job(folder, mesh, "plain", name_of("saved", mesh), save_at=5, checkpoints=kept))
        for written, read in itertools.product(resumed, resumed):
            kept = str(folder / name_of("checkpoints", written))
            name = name_of(written, "to", read)
            jobs.append(job(folder, read, "plain", name, save_at=5, load=True, checkpoints=kept))
        run(folder, ranks, jobs)
    return folder


def result(folder: Path, *name: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = json.loads((folder / f"{name_of(*name)}.json").read_text())
    return found


@pytest.mark.parametrize(("mesh", "variant"), list(itertools.product(MESHES, VARIANTS))[1:])
def test_every_mesh_trains_as_a_single_process_does(mesh: str, variant: str, folder: Path) -> None:
    found, alone = result(folder, mesh, variant), result(folder, "single", "plain")
    assert len(found["losses"]) == 10
    assert found["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert found["norms"] == pytest.approx(alone["norms"], rel=1e-4)
    ours, theirs = (
        torch.load(folder / f"{name}.pt", weights_only=True) for name in (name_of(mesh, variant), "single-plain")
    )
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], rtol=1e-5, atol=1e-5, msg=f"{key} differs")


@pytest.mark.parametrize(("written", "read"), itertools.product(RESUMED, RESUMED))
def test_a_checkpoint_of_any_mesh_goes_on_on_any_other(written: str, read: str, folder: Path) -> None:
    whole = result(folder, read, "plain")["losses"]
    resumed = result(folder, written, "to", read)["losses"]
    assert resumed == pytest.approx(whole[5:], rel=1e-5)
    if written == read:
        assert resumed == whole[5:]
