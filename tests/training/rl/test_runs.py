"""Reinforcement learning end to end: every recipe runs, and a run that was killed anywhere goes on as if it had not."""

from __future__ import annotations

import csv
import functools
import json
import signal
import subprocess
from pathlib import Path

import pytest

from framework.checkpoint.history import committed
from tests.processes import framework, run
from tests.training.rl import killed_policy
from tests.training.rl.diagnostics import DIAGNOSTICS
from tests.worlds import worlds

STEPS = 6
NO_EVALS = "evals=[]"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
KILLS = (("generation", 6), ("reward", 2), ("update", 3), ("synchronisation", 2))
"""In what phase an attempt is killed, and in which of its calls."""
EXACT = ("loss", "gradient_norm", "reward/mean", "policy/entropy", "policy/engine_error", "rl/kept", "answers/length")
"""Metrics that must be the same to the last digit; the others are times."""


def _run(folder: Path, *overrides: str, killed: tuple[str, int] | None = None) -> subprocess.CompletedProcess[str]:
    rl = "curriculum.stages.rl"
    few = [
        "recipe=rl_dapo", "scale=tiny", f"curriculum.max_steps_per_stage={STEPS}", "sources.world_hard.scenes=24",
        "sources.world_hard_held_out.scenes=6",
        "init_from=null", "checkpoint.every=2", f"{rl}.group_size=4", "run.name=rl", "stage.global_batch=6",
        f"{rl}.filter.floor=0.045", f"paths.runs={folder}/runs", f"paths.cache={worlds()}",
    ]  # fmt: skip
    words = [*few, *overrides]
    return run(framework(*words) if killed is None else functools.partial(killed_policy.main, *killed, words))


def _metrics(folder: Path) -> dict[str, dict[int, str]]:
    """As they were written; of a step that two attempts trained, the later's."""
    found: dict[str, dict[int, str]] = {name: {} for name in EXACT}
    with (folder / "runs" / "rl" / "metrics.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            if row["name"] in found:
                found[row["name"]][int(row["step"])] = row["value"]
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[int, str]]]:
    folder = tmp_path_factory.mktemp("policy") / "undisturbed"
    done = _run(folder)
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = _metrics(folder)
    assert all(sorted(series) == list(range(1, STEPS + 1)) for series in metrics.values())
    assert any(float(value) < 1 for value in metrics["rl/kept"].values()), "no groups were left over"
    return folder, metrics


def test_the_rollouts_of_a_saved_step_are_in_its_checkpoint_and_on_a_page(
    undisturbed: tuple[Path, dict[str, dict[int, str]]],
) -> None:
    run = undisturbed[0] / "runs" / "rl"
    assert [page.name for page in sorted((run / "rollouts").iterdir())] == [f"step-{n:08d}.html" for n in (2, 4, 6)]
    newest = committed(run / "checkpoints")[-1]
    state = newest.rank_state(0)
    assert state is not None
    trained = state["module"]["trained"]
    rewards = [reward for group in trained for reward in group["rewards"]]
    assert len(trained) == 6
    assert all(len(group["answers"]) == len(group["rewards"]) for group in trained)
    page = (run / "rollouts" / f"step-{newest.step:08d}.html").read_text(encoding="utf-8")
    assert page.count("<section") == page.count("data:image/jpeg") == 6
    assert all(f"{reward:.3f}" in page for reward in rewards)


@pytest.mark.guarantee("A run killed in generation, reward, update or synchronisation resumes with the same results")
def test_killed_anywhere_the_next_rewards_and_losses_are_the_same(
    undisturbed: tuple[Path, dict[str, dict[int, str]]],
) -> None:
    """Each attempt is killed in another phase, in a step after the last checkpoint."""
    folder = undisturbed[0].parent / "killed"
    for phase, call in KILLS:
        killed = _run(folder, NO_EVALS, killed=(phase, call))
        assert killed.returncode == -signal.SIGKILL, f"{phase}: {killed.stderr[-3000:]}"
    done = _run(folder, NO_EVALS)
    assert done.returncode == 0, done.stderr[-3000:]
    events = map(json.loads, (folder / "runs" / "rl" / "attempts.jsonl").read_text().splitlines())
    assert [event["event"] for event in events] == [*["start"] * (len(KILLS) + 1), "end"]
    assert _metrics(folder) == undisturbed[1]


@pytest.mark.guarantee(
    "Diagnostics of rewards, policy, lengths, log-probability gap and driving are logged at every step"
)
@pytest.mark.parametrize("kind", sorted(DIAGNOSTICS))
def test_every_diagnostic_is_logged_at_every_step(
    undisturbed: tuple[Path, dict[str, dict[int, str]]], kind: str
) -> None:
    logged: dict[str, set[int]] = {}
    with (undisturbed[0] / "runs" / "rl" / "metrics.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            logged.setdefault(row["name"], set()).add(int(row["step"]))
    steps = set(range(1, STEPS + 1))
    assert {name for name in DIAGNOSTICS[kind].split() if not steps <= logged.get(name, set())} == set()
    if kind == "driving":
        for name in DIAGNOSTICS[kind].split():
            assert any(other.startswith(f"{name}/") for other in logged), f"{name} is not told by kind of scenario"


def test_results_show_what_the_stage_brought(undisturbed: tuple[Path, dict[str, dict[int, str]]]) -> None:
    results = json.loads((undisturbed[0] / "runs" / "rl" / "results.json").read_text())
    assert set(results) == {"untrained", "rl"}
    simulated = results["rl"]["simulated_hard"]["simulation"]
    assert simulated["expert"]["at_fault_collision"]["all"] <= simulated["stay"]["at_fault_collision"]["all"] + 0.5
    assert simulated["expert"]["planning_score"]["all"] > simulated["model"]["planning_score"]["all"]


def test_a_reference_outlives_the_attempt(undisturbed: tuple[Path, dict[str, dict[int, str]]]) -> None:
    """The divergence is that from the stage's first weights, not from those that were resumed."""
    changes = ("stage/objective/kl=k3", "stage.lr=0.001", "curriculum.max_steps_per_stage=4", NO_EVALS)
    folder, broken = undisturbed[0].parent / "reference", undisturbed[0].parent / "reference-killed"
    done = _run(folder, *changes)
    assert done.returncode == 0, done.stderr[-3000:]
    killed = _run(broken, *changes, killed=("update", 4))
    assert killed.returncode == -signal.SIGKILL
    done = _run(broken, *changes)
    assert done.returncode == 0, done.stderr[-3000:]
    assert _metrics(broken) == _metrics(folder)
