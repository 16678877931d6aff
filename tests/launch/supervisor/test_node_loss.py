"""A node is lost during a run: Slurm requeues the job, which ends as if nothing had happened."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from framework.launch.supervisor.restart import committed_step
from framework.run.goodput import accounts
from tests.processes import UNEVALUATED
from tools.goodput import report
from tools.slurm import LocalSlurm, local_slurm, missing_programs
from tools.soak.verdict import differences

REPOSITORY = Path(__file__).resolve().parents[3]
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
START_S = 900.0
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(bool(missing_programs()), reason="no Slurm here (Debian: slurm-wlm, munge)"),
]
RECIPE = (
    *UNEVALUATED, "launch=slurm", "launch.devices=1", "launch.uncommitted=true", "launch.evaluate=false",
    "checkpoint.every=4", "curriculum.max_steps_per_stage=8",
)  # fmt: skip


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[LocalSlurm]:
    """Two nodes."""
    with local_slurm(tmp_path / "slurm", nodes=2) as cluster:
        yield cluster


def submit(cluster: LocalSlurm, folder: Path, name: str) -> tuple[Path, str]:
    """The folder and the number of the job of a run."""
    paths = [f"paths.runs={folder}/runs", f"paths.cache={folder}/cache", f"run.name={name}"]
    done = subprocess.run(
        [sys.executable, "-m", "framework", *RECIPE, *paths],
        cwd=REPOSITORY, env={**os.environ, **cluster.environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "runs" / name, done.stdout.split()[-1]


def wait_for(fulfilled: Callable[[], bool], folder: Path) -> None:
    """Wait until the condition holds; a timeout shows the job's log."""
    end = time.monotonic() + START_S
    while not fulfilled():
        assert time.monotonic() < end, (folder / "job.log").read_text()[-3000:]
        time.sleep(0.5)


def test_a_lost_node_costs_minutes_and_no_human(slurm: LocalSlurm, tmp_path: Path) -> None:
    undisturbed, first = submit(slurm, tmp_path, "undisturbed")
    assert slurm.wait_for(first, ENDED, START_S) == "COMPLETED", (undisturbed / "job.log").read_text()[-3000:]
    struck, second = submit(slurm, tmp_path, "struck")
    wait_for(lambda: committed_step(struck) >= 4, struck)
    slurm.kill_node("n2")
    wait_for(lambda: slurm.state_of(second) == "PENDING", struck)
    slurm.start_node("n2")
    assert slurm.wait_for(second, ENDED, START_S) == "COMPLETED", (struck / "job.log").read_text()[-3000:]
    attempts = accounts(struck, time.time())
    print(report(attempts))
    assert list(differences(struck, undisturbed)) == []
    assert len(attempts) == 2
    assert attempts[1].seconds["queue"] > 0
    assert attempts[1].first is not None
    assert attempts[1].first >= 4
