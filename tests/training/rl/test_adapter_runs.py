"""Reinforcement learning of low-rank adapters, from a run without any: its reference, a kill, and what is exported."""

from __future__ import annotations

import csv
import functools
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from framework.checkpoint.history import committed
from tests.processes import framework, run, run_ranks
from tests.training.rl import killed_policy
from tests.worlds import worlds

STEPS = 3
LORA = "model/adapters=lora"
EXACT = ("loss", "gradient_norm", "reward/mean", "policy/reference_kl")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def _told(folder: Path, recipe: str, name: str, *words: str) -> list[str]:
    few = [f"recipe={recipe}", "scale=tiny", f"run.name={name}", f"paths.runs={folder}", f"paths.cache={worlds()}"]
    return [*few, *words]


def _run(
    folder: Path, recipe: str, name: str, *words: str, killed: int | None = None
) -> subprocess.CompletedProcess[str]:
    told = _told(folder, recipe, name, *words)
    return run(framework(*told) if killed is None else functools.partial(killed_policy.main, "update", killed, told))


def _few(folder: Path) -> list[str]:
    rl = "curriculum.stages.rl"
    return [
        LORA, f"curriculum.max_steps_per_stage={STEPS}", "sources.world_hard.scenes=24", "evals=[]",
        "checkpoint.every=1",
        f"{rl}.group_size=4", "stage/prompt_weights=none", "stage.global_batch=6", "stage.lr=0.001",
        f"init_from={folder}/base",
    ]  # fmt: skip


def _policy(folder: Path, name: str, killed: int | None = None) -> subprocess.CompletedProcess[str]:
    return _run(folder, "rl_grpo", name, *_few(folder), killed=killed)


def _metrics(run: Path) -> dict[str, list[str]]:
    with (run / "metrics.csv").open(newline="") as stream:
        rows = {(row["name"], int(row["step"])): row["value"] for row in csv.DictReader(stream)}
    return {name: [rows[name, step] for step in range(1, STEPS + 1)] for name in EXACT}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs `base`, without adapters, and `policy`, with, that began from it."""
    folder = tmp_path_factory.mktemp("adapters")
    few = ["curriculum.max_steps_per_stage=1", "sources.world_train.scenes=16", "sources.world_hard.scenes=8"]
    done = _run(folder, "supervised", "base", *few, "~evals.held_out", "~evals.zero_shot")
    assert done.returncode == 0, done.stderr[-3000:]
    done = _policy(folder, "policy")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_the_divergence_grows_from_nothing_and_no_reference_is_stored(folder: Path) -> None:
    first, *others = map(float, _metrics(folder / "policy")["policy/reference_kl"])
    assert first == pytest.approx(0, abs=1e-5)
    assert min(others) > 1e-4
    assert not (folder / "policy" / "reference-rl").exists()


@pytest.mark.guarantee("A killed run with adapters ends with the same losses, and exports a plain model")
def test_a_killed_run_ends_with_the_same_losses(folder: Path) -> None:
    killed = _policy(folder, "killed", killed=3)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    assert [checkpoint.step for checkpoint in committed(folder / "killed" / "checkpoints")] == [1, 2]
    done = _policy(folder, "killed")
    assert done.returncode == 0, done.stderr[-3000:]
    assert _metrics(folder / "killed") == _metrics(folder / "policy")


def test_two_sharded_ranks_learn_as_one_does(folder: Path) -> None:
    run_ranks(2, framework(*_told(folder, "rl_grpo", "two", *_few(folder), "parallel.devices=2")))
    found, expected = _metrics(folder / "two"), _metrics(folder / "policy")
    for name in EXACT:
        ours, alone = (list(map(float, series[name])) for series in (found, expected))
        assert ours == pytest.approx(alone, rel=1e-4, abs=1e-6), name
    assert not (folder / "two" / "reference-rl").exists()


@pytest.mark.guarantee("A killed run with adapters ends with the same losses, and exports a plain model")
def test_the_export_is_the_base_with_the_adapters_merged_into_it(folder: Path) -> None:
    exports = {}
    for name in ("base", "policy"):
        done = run(
            framework("recipe=export", f"run.name=export-{name}", f"paths.runs={folder}", f"task.run={folder}/{name}")
        )
        assert done.returncode == 0, done.stderr[-3000:]
        exports[name] = load_file(folder / f"export-{name}" / "export" / "model.safetensors")
    assert exports["base"].keys() == exports["policy"].keys()
    changed = {name for name, value in exports["base"].items() if not torch.equal(value, exports["policy"][name])}
    assert changed == {name for name in exports["base"] if "language_model.layers" in name and "_proj." in name}


@pytest.mark.guarantee("A killed run with adapters ends with the same losses, and exports a plain model")
def test_a_recipe_without_adapters_does_not_pass_over_a_checkpoints(folder: Path) -> None:
    few = ["curriculum.max_steps_per_stage=1", "~evals.held_out", "~evals.zero_shot", f"init_from={folder}/policy"]
    done = _run(folder, "supervised", "wrong", *few)
    assert done.returncode != 0
    assert "gate_proj.adapter.down: (16, 128) in the checkpoint, none in the model" in done.stderr
