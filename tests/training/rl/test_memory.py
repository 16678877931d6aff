"""Hundreds of steps of reinforcement learning take no more memory than the first did."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.training.rl.diagnostics import DIAGNOSTICS
from tests.worlds import worlds

REPOSITORY = Path(__file__).resolve().parents[3]
STEPS = 200
SETTLED = 60
"""Steps after which nothing may grow: caches are full, and the allocator has what it needs."""
MOST_TENSORS = 0.25
MOST_BYTES = 32 * 1024
"""What a step may leave behind at most; the allocator's own drift is a fifth of that."""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1000)]


def _run(folder: Path, steps: int, leaked: int = 0) -> list[dict[str, int]]:
    """The memory seen during a run of so many steps, each of which forgets to free `leaked` bytes."""
    rl, architecture = "curriculum.stages.rl", "model.backbone.architecture"
    words = [
        "recipe=rl_dapo", "scale=tiny", f"curriculum.max_steps_per_stage={steps}", "sources.world_hard.scenes=24",
        "evals=[]", "init_from=null", "checkpoint.every=100", "run.name=long",
        f"{rl}.group_size=2", "stage/filter=none", "stage/prompt_weights=none",
        "stage.global_batch=1", "data.micro_batch=1", "data.image_width=64",
        f"{architecture}.text.num_hidden_layers=1", f"{architecture}.vision.depth=1",
        f"paths.runs={folder}/runs", f"paths.cache={worlds()}",
    ]  # fmt: skip
    seen = folder / "memory.jsonl"
    folder.mkdir()
    command = [sys.executable, "-m", "tests.training.rl.watched_policy", str(seen), str(leaked), *words]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in seen.read_text().splitlines()]


def _growth(seen: list[dict[str, int]], name: str, since: int) -> float:
    """What a step adds, by least squares over the steps after `since`."""
    counted = [(one["step"], one[name]) for one in seen if one["step"] >= since]
    assert len(counted) >= 4
    steps, values = zip(*counted, strict=True)
    return float(np.polyfit(steps, values, 1)[0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("memory")


@pytest.mark.guarantee("Hundreds of RL steps leak no memory, and a deliberate leak is caught")
def test_no_step_leaves_memory_behind_and_all_log_every_diagnostic(folder: Path) -> None:
    seen = _run(folder / "sound", STEPS)
    assert seen[-1]["step"] == STEPS
    assert _growth(seen, "tensors", SETTLED) < MOST_TENSORS
    assert _growth(seen, "bytes", SETTLED) < MOST_BYTES
    logged: dict[str, set[int]] = {}
    with (folder / "sound" / "runs" / "long" / "metrics.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            logged.setdefault(row["name"], set()).add(int(row["step"]))
    steps = set(range(1, STEPS + 1))
    names = " ".join(DIAGNOSTICS.values()).split()
    assert {name for name in names if not steps <= logged.get(name, set())} == set()


@pytest.mark.guarantee("Hundreds of RL steps leak no memory, and a deliberate leak is caught")
def test_a_tensor_that_each_step_forgets_is_found(folder: Path) -> None:
    """The bounds above would show a leak, of tensors and of bytes alike.

    It is eight bounds a step: what the allocator has free already takes the first few megabytes of it unseen.
    """
    seen = _run(folder / "leaking", 80, leaked=8 * MOST_BYTES)
    assert _growth(seen, "tensors", 20) > 0.9 > MOST_TENSORS
    assert _growth(seen, "bytes", 20) > MOST_BYTES
