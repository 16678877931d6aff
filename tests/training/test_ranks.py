"""The same training on one rank and on two, and from two to one after a kill: contracts 1 and 2 through the command."""

from __future__ import annotations

from pathlib import Path

import pytest

from framework.data.stream.ledger import first_difference, read_attempts, tally
from framework.run.heartbeat import parse_heartbeat
from tests.processes import SMALL_SUPERVISED, Work, framework, run_ranks, started_ranks
from tests.worlds import worlds

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RECIPE = (
    *SMALL_SUPERVISED, "curriculum.max_steps_per_stage=6", "checkpoint.every=3", "model/action_head=flow",
    "evals.held_out.tasks={answer: 8}",
)  # fmt: skip


def command(folder: Path, name: str, ranks: int) -> Work:
    paths = [f"paths.runs={folder}/runs", f"paths.cache={worlds()}", f"run.name={name}"]
    return framework(*RECIPE, *paths, f"parallel.devices={ranks}")


def train(folder: Path, name: str, ranks: int) -> dict[int, float]:
    """Losses by step."""
    return losses(run_ranks(ranks, command(folder, name, ranks))[0])


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
        assert all(not stream.repeated and not stream.lost for stream in tally(ours[stage]))


def test_two_ranks_train_as_one_does(alone: tuple[Path, dict[int, float]]) -> None:
    folder, expected = alone
    assert train(folder, "two", 2) == pytest.approx(expected, rel=1e-5)
    same_samples(folder, "two")


@pytest.mark.guarantee("Every sample is trained exactly once, for any number of ranks and restarts")
def test_two_ranks_that_were_killed_go_on_as_one(alone: tuple[Path, dict[int, float]]) -> None:
    folder, expected = alone
    with started_ranks(2, command(folder, "cut", 2)) as ranks:
        for line in ranks[0].lines():
            beat = parse_heartbeat(line)
            if beat is not None and beat.step == 4:
                break  # which kills them
    resumed = train(folder, "cut", 1)
    assert min(resumed) == 4
    assert resumed == pytest.approx({step: loss for step, loss in expected.items() if step >= 4}, rel=1e-5)
    same_samples(folder, "cut")
