"""kill -9 of one rank and of all, in every phase of a save: the next attempt ends with an undisturbed run's weights."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from framework.checkpoint.history import committed
from framework.checkpoint.manifest import problems
from tests.checkpoint.launch import results, run, start
from tests.checkpoint.toy import alive, wait_for

FIRST, LAST = "step-00000002.attempt-1", "step-00000004.attempt-4"
COMMITTED = {"staging": [FIRST], "upload": [FIRST], "commit": [FIRST], "retire": [FIRST, LAST]}
"""The phases in which one attempt after the other is killed, and what is committed then: each went on from `FIRST`."""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def job(folder: Path, attempt: int, **more: Any) -> dict[str, Any]:
    return {
        "task": "train",
        "folder": str(folder / "checkpoints"),
        "signals": str(folder),
        "out": str(folder / f"out-{attempt}"),
        "mesh": [1, 2, 1],
        "attempt": attempt,
        **more,
    }


def finish(folder: Path, attempt: int) -> list[dict[str, Any]]:
    return run(2, job(folder, attempt))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of a run that nothing happened to."""
    found = finish(tmp_path_factory.mktemp("undisturbed"), 1)
    assert found[0]["start"] == 0
    assert found[0]["digest"] == found[1]["digest"]
    return str(found[0]["digest"])


@pytest.mark.guarantee("A kill at any moment loses nothing committed")
@pytest.mark.parametrize("victims", ["one rank", "all"])
def test_killed_in_every_phase(tmp_path: Path, undisturbed: str, victims: str) -> None:
    """Each attempt in another phase of its save of step 4; the last one is left to its end."""
    for attempt, (phase, safe) in enumerate(COMMITTED.items(), start=1):
        signals, pause_rank = tmp_path / phase, 0 if phase in ("commit", "retire") else 1
        with start(2, job(tmp_path, attempt, pause=phase, pause_rank=pause_rank, signals=str(signals))) as ranks:
            wait_for(signals / "reached")
            if victims == "one rank":
                ranks[1].process.kill()  # for the commit, one that has nothing to do with it
        assert [checkpoint.folder.name for checkpoint in committed(tmp_path / "checkpoints")] == safe, phase
        (signals / "go").touch()
    found = finish(tmp_path, len(COMMITTED) + 1)
    assert [rank["start"] for rank in found] == [4] * 2
    assert [rank["digest"] for rank in found] == [undisturbed] * 2
    kept = committed(tmp_path / "checkpoints")
    assert kept[-1].step == 8
    assert not any(problems(checkpoint.folder) for checkpoint in kept)
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*")) == [x.folder.name for x in kept]


def test_the_others_do_not_hang_when_one_is_killed(tmp_path: Path) -> None:
    with start(2, job(tmp_path, 1, pause="upload", pause_rank=1)) as ranks:
        wait_for(tmp_path / "reached")
        ranks[1].process.kill()
        ended = ranks[0].finish(timeout=60)
        assert ended.returncode != 0
        assert "onnection" in ended.stderr


def test_a_daemon_killed_on_one_rank_is_told_to_all_and_replaced(tmp_path: Path, undisturbed: str) -> None:
    with start(2, job(tmp_path, 1, pause="upload", pause_rank=1)) as ranks:
        wait_for(tmp_path / "reached")
        children = subprocess.run(["pgrep", "-P", str(ranks[1].pid)], capture_output=True, text=True, check=True)
        (daemon,) = children.stdout.split()
        os.kill(int(daemon), signal.SIGKILL)
        (tmp_path / "go").touch()
        found = results(ranks, str(tmp_path / "out-1"))
    assert [rank["digest"] for rank in found] == [undisturbed] * 2
    assert [checkpoint.step for checkpoint in committed(tmp_path / "checkpoints")] == [2, 6, 8]  # 4 was lost


def test_an_orphan_that_commits_late(tmp_path: Path, undisturbed: str) -> None:
    with start(2, job(tmp_path, 1, pause="commit", pause_rank=0, stubborn=True)) as ranks:
        wait_for(tmp_path / "reached")
        orphan = int((tmp_path / "pid").read_text())
        for rank in ranks:
            rank.process.kill()
            rank.process.join()
        assert alive(orphan)
        with start(2, job(tmp_path, 2, pause="upload", pause_rank=1, signals=str(tmp_path / "second"))):
            wait_for(tmp_path / "checkpoints" / "attempts" / "attempt-2.json")
            (tmp_path / "go").touch()  # the orphan goes on
            wait_for(tmp_path / "committed")
    late = tmp_path / "checkpoints" / "step-00000004.attempt-1"
    assert problems(late) == []
    found = finish(tmp_path, 3)
    assert [rank["start"] for rank in found] == [2, 2]  # as attempt 2 had chosen, which died before it saved
    assert [rank["digest"] for rank in found] == [undisturbed] * 2
    assert not late.exists()
