"""A search whose trials are job arrays of a real Slurm, as the command line runs it, killed on the way."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from framework.launch.submissions import submissions
from tests.launch.conftest import FILES, NEEDS_SLURM, REPOSITORY, SEARCHED, commit, git, lay
from tools.slurm import LocalSlurm

pytest.importorskip("optuna", reason="optuna is not installed: the extra `search`")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), NEEDS_SLURM]


def test_a_killed_search_ends_with_the_trials_that_were_asked_for(real_cluster: LocalSlurm, tmp_path: Path) -> None:
    checkout, log = tmp_path / "checkout", tmp_path / "search.log"
    shutil.copytree(REPOSITORY / "framework", checkout / "framework", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(REPOSITORY / "conf" / "launch", checkout / "conf" / "launch")
    lay(checkout, {name: text for name, text in FILES.items() if "framework/" not in name} | SEARCHED)
    shutil.copy(REPOSITORY / ".gitignore", checkout)
    git(checkout, "init", "--quiet")
    commit(checkout, "first")
    words = ["recipe=trial", "launch=slurm", f"paths.runs={tmp_path}/runs", "task.x=interval(0,2)"]
    words += ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=6", "hydra.sweeper.n_jobs=3", "-m"]
    command = [sys.executable, "-m", "framework", *words]
    variables = {**os.environ, "PYTHONPATH": str(checkout)}
    study = tmp_path / "runs" / "trial"
    with log.open("w") as output:
        search = subprocess.Popen(command, cwd=checkout, env=variables, stdout=output, stderr=output)
        while sum('"end"' in file.read_text() for file in study.glob("trial-*/attempts.jsonl")) < 3:
            assert search.poll() is None, log.read_text()
            time.sleep(0.5)
        search.kill()
        search.wait()
    again = subprocess.run(command, cwd=checkout, env=variables, capture_output=True, text=True, timeout=600)
    assert again.returncode == 0, again.stderr
    _, *lines = again.stdout[again.stdout.index("rank") :].splitlines()
    table, counts = lines[:6], lines[7]
    assert counts.startswith("6 trials: ")
    ends = ("complete", "non-finite", "pruned")  # which, is up to the values that are drawn
    assert all(any(end in line for end in ends) for line in table), again.stdout
    folders = sorted(study.glob("trial-*"))
    assert [folder.name for folder in folders] == [f"trial-{number:04d}" for number in range(6)]
    assert all(len(submissions(folder)) == 1 for folder in folders), "no trial is submitted twice"
