"""What a worker owes its supervisor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from framework.run.worker import ATTEMPT, DUMP, STACKS, SUPERVISOR, follow_supervisor, supervised_attempt

WAITING = """
import time
from framework.run.worker import follow_supervisor
follow_supervisor()
print("ready", flush=True)
time.sleep(60)
"""


def test_a_worker_writes_its_stacks_when_told_and_goes_on(tmp_path: Path) -> None:
    environment = {**os.environ, STACKS: str(tmp_path), SUPERVISOR: str(os.getpid()), "RANK": "5"}
    command = [sys.executable, "-c", WAITING]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
        worker.send_signal(DUMP)
        end = time.monotonic() + 30
        while not (stacks := (tmp_path / "rank-5.txt").read_text()) and time.monotonic() < end:
            time.sleep(0.01)
        alive = worker.poll() is None
        worker.kill()
    assert 'File "<string>"' in stacks
    assert alive


def test_without_a_supervisor_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (ATTEMPT, STACKS, SUPERVISOR):
        monkeypatch.delenv(name, raising=False)
    before = signal.getsignal(DUMP)
    follow_supervisor()
    assert signal.getsignal(DUMP) is before
    assert supervised_attempt() is None


def test_the_supervisor_numbers_the_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ATTEMPT, "7")
    assert supervised_attempt() == 7
