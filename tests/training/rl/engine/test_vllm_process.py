"""A server that is killed leaves nothing behind that keeps memory."""

from __future__ import annotations

import os
import signal
import stat
import sys
import time
from pathlib import Path

from framework.training.rl.engine.vllm_process import PID, VLLMProcess

SERVER = """#!{python}
import pathlib, subprocess, sys, time
engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "VLLM::EngineCore"])
with open("{told}", "a") as told:
    print(engine.pid, file=told, flush=True)
time.sleep(600)
"""


def _engines(told: Path, count: int) -> list[int]:
    while not told.exists() or told.read_text().count("\n") < count:
        time.sleep(0.05)
    return [int(line) for line in told.read_text().split()]


def _lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _until_dead(process: int) -> None:
    while _lives(process):
        time.sleep(0.05)


def test_the_engine_of_a_killed_server_is_ended_before_the_next_begins(tmp_path: Path) -> None:
    told, python = tmp_path / "told", tmp_path / "python"
    python.write_text(SERVER.format(python=sys.executable, told=told))
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    process, folder = VLLMProcess(str(python)), tmp_path / "engine"
    assert process.start(folder, "http://127.0.0.1:1")
    (first,) = _engines(told, 1)
    os.kill(int((folder / PID).read_text()), signal.SIGKILL)
    while not process.ended(folder):
        time.sleep(0.05)
    assert _lives(first), "it would have ended by itself"
    assert process.start(folder, "http://127.0.0.1:1")
    _until_dead(first)
    _, second = _engines(told, 2)
    process.stop()
    _until_dead(second)
