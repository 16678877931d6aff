"""The same training on one rank and on two, and from two to one after a kill: contracts 1 and 2 through the command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from framework.data.ledger import first_difference, read_attempts, tally
from framework.recipe.heartbeat import parse_heartbeat

REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RECIPE = ["recipe=supervised", "scale=tiny", "data.micro_batch=2", "sizes.train_scenes=48", "sizes.hard_scenes=32"]
RECIPE += ["sizes.examined_scenes=2", "examinations.held_out.tasks={answer: 8}", "examinations.zero_shot.scenes=1"]


def command(folder: Path, name: str, ranks: int) -> list[str]:
    start = [sys.executable, "-m"]
    if ranks > 1:
        start += ["torch.distributed.run", "--nproc-per-node", str(ranks), "-m"]
    paths = [f"paths.runs={folder}/runs", f"paths.cache={folder}/cache", f"run.name={name}"]
    return [*start, "framework", *RECIPE, *paths, f"parallel.devices={ranks}"]


def train(folder: Path, name: str, ranks: int) -> dict[int, float]:
    """Losses by step."""
    done = subprocess.run(
        command(folder, name, ranks), cwd=REPOSITORY, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return losses(done.stdout)


def losses(printed: str) -> dict[int, float]:
    beats = [beat for line in printed.splitlines() if (beat := parse_heartbeat(line)) is not None]
    return {beat.step: beat.loss for beat in beats}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, float]]:
    """A folder with the run of one rank, and its losses."""
    folder = tmp_path_factory.mktemp("ranks")
    return folder, train(folder, "one", 1)


def same_samples(folder: Path, name: str) -> None:
    ours, theirs = (read_attempts(folder / "runs" / run / "ledger") for run in (name, "one"))
    for stage in ("broad", "quality"):
        assert first_difference(ours[stage], theirs[stage]) is None
        assert all(not found.repeated and not found.lost for found in tally(ours[stage]))


def test_two_ranks_train_as_one_does(alone: tuple[Path, dict[int, float]]) -> None:
    folder, expected = alone
    assert train(folder, "two", 2) == pytest.approx(expected, rel=1e-5)
    same_samples(folder, "two")


def test_two_ranks_that_were_killed_go_on_as_one(alone: tuple[Path, dict[int, float]]) -> None:
    folder, expected = alone
    with subprocess.Popen(
        command(folder, "cut", 2), cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"}, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            beat = parse_heartbeat(line)
            if beat is not None and beat.step == 8:
                os.killpg(process.pid, signal.SIGKILL)
                break
    resumed = train(folder, "cut", 1)
    assert min(resumed) == 6
    assert resumed == pytest.approx({step: loss for step, loss in expected.items() if step >= 6}, rel=1e-5)
    same_samples(folder, "cut")
