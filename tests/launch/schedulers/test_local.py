"""Jobs of this machine are active from their first instant to the end of their last process, and run one at a time."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from framework.launch.schedulers.local import LocalScheduler

REPOSITORY = Path(__file__).resolve().parents[3]


def text(name: str, arguments: list[str], folder: Path) -> str:
    """The text that submits `arguments` as the job called `name`, which logs into `folder`."""
    return json.dumps({"name": name, "overrides": arguments, "log": str(folder / f"{name}.log")})


def ended(jobs: LocalScheduler, *names: str) -> None:
    """Wait until the jobs have ended."""
    limit = time.monotonic() + 120
    while any(jobs.find(name) for name in names):
        assert time.monotonic() < limit, "the jobs do not end"
        time.sleep(0.05)


def test_a_job_is_known_until_it_has_ended_and_leaves_its_output(tmp_path: Path) -> None:
    jobs = LocalScheduler(tmp_path / "jobs")
    assert jobs.find("help") is None
    assert jobs.submit(text("help", ["--help"], tmp_path / "own")) == "help"
    assert jobs.find("help") == "help"
    ended(jobs, "help")
    assert "run the recipe's task" in (tmp_path / "own" / "help.log").read_text()


def test_a_job_after_one_that_failed_is_not_started(tmp_path: Path) -> None:
    jobs = LocalScheduler(tmp_path / "jobs")
    jobs.submit(text("wrong", ["check", "recipe=none"], tmp_path))
    jobs.submit(text("next", ["--help"], tmp_path), after=["wrong"])
    jobs.submit(text("right", ["--help"], tmp_path))
    jobs.submit(text("last", ["--help"], tmp_path), after=["right"])
    ended(jobs, "wrong", "next", "right", "last")
    assert (tmp_path / "next.log").read_text() == "next: not started, because wrong failed\n"
    assert "run the recipe's task" in (tmp_path / "last.log").read_text()


@pytest.mark.slow
def test_a_job_outlives_who_submitted_it(tmp_path: Path) -> None:
    script = "import sys; from pathlib import Path; from framework.launch.schedulers.local import LocalScheduler; "
    script += "LocalScheduler(Path(sys.argv[1])).submit(sys.argv[2])"
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), text("help", ["--help"], tmp_path)], cwd=REPOSITORY, check=True
    )
    jobs = LocalScheduler(tmp_path)
    assert jobs.find("help") == "help"
    ended(jobs, "help")
    assert (tmp_path / "help.log").stat().st_size > 0


def test_a_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    jobs = LocalScheduler(tmp_path)
    jobs.submit(text("help", ["--help"], tmp_path))
    with pytest.raises(BlockingIOError):
        jobs.submit(text("help", ["--help"], tmp_path))
    ended(jobs, "help")


def test_a_job_is_no_rank_of_whatever_submits_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started, mock = [], SimpleNamespace(pid=1)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr("subprocess.Popen", lambda *arguments, **options: started.append(options["env"]) or mock)
    LocalScheduler(tmp_path).submit(text("help", ["--help"], tmp_path))
    assert "RANK" not in started[0]
    assert "PATH" in started[0]
