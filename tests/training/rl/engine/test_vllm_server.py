"""Reinforcement learning with real vLLM servers on a CPU, of which one is killed on the way.

Wants the python of an environment with vLLM 0.32 in VLLM_PYTHON; CONTRIBUTING.md says how to make one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from framework.launch.host import free_port
from tools.bench.vllm_parity import GATE
from tools.bench.vllm_reward import RL, common_words, metrics_of, server_words

REPOSITORY = Path(__file__).resolve().parents[4]
STEPS = 20
KILLED_AFTER = 8
STARTED = "Application startup complete"
"""What a server writes to its log when it is ready."""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(7200),
    pytest.mark.skipif("VLLM_PYTHON" not in os.environ, reason="VLLM_PYTHON names no python with vLLM"),
]


class Training:
    """A run in a process of its own.

    Args:
        folder: Holds the run and its log.
        steps: Its steps.
        words: Say which engine.
    """

    def __init__(self, folder: Path, steps: int, words: Sequence[str]) -> None:
        self.folder, self.log = folder / "runs" / "vllm", folder / "run.log"
        command = [sys.executable, "-m", "framework", *common_words(folder, steps), "run.name=vllm", *words]
        with self.log.open("w") as stream:
            self.process = subprocess.Popen(command, cwd=REPOSITORY, stdout=stream, stderr=subprocess.STDOUT)

    def __enter__(self) -> Training:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def until(self, reached: Callable[[], bool]) -> None:
        """Wait; the run must go on meanwhile."""
        while not reached():
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            time.sleep(0.2)

    def kill_server(self, engine: str) -> int:
        """Kill the server of an engine's folder in the midst of the run. Returns the id of its process."""
        self.until(lambda: len(self.metrics().get("loss", {})) >= KILLED_AFTER)
        killed = int((self.folder / engine / "server.pid").read_text())
        os.kill(killed, signal.SIGKILL)
        return killed

    def metrics(self) -> dict[str, dict[int, float]]:
        return metrics_of(self.folder) if (self.folder / "metrics.csv").exists() else {}

    def assert_nothing_was_lost(self, steps: int) -> None:
        """Each step was drawn by the weights of the one before, all answers to all prompts, and scored as drawn."""
        metrics = self.metrics()
        for step in range(1, steps + 1):
            told = {name: metrics[name][step] for name in ("answers/weight_version", "rl/groups", "rl/rounds")}
            assert told == {"answers/weight_version": step - 1, "rl/groups": 8.0, "rl/rounds": 1.0}
            assert metrics["policy/engine_error_max"][step] < GATE


@pytest.mark.guarantee("A killed vLLM server is restarted, receives its weights and generates the missing answers")
@pytest.mark.parametrize("transfer", [["disk"], ["collective", f"{RL}.sampler.transfer.backend=gloo"]])
def test_a_killed_server_is_started_again_and_nothing_is_lost(tmp_path: Path, transfer: list[str]) -> None:
    way = ["stage/sampler=vllm", f"stage/sampler/transfer={transfer[0]}", *transfer[1:]]
    with Training(tmp_path, STEPS, [*way, *server_words(f"{RL}.sampler", free_port())]) as run:
        killed = run.kill_server("engine")
        assert run.process.wait() == 0, run.log.read_text()[-3000:]
    pid = run.folder / "engine" / "server.pid"
    assert int(pid.read_text()) != killed
    assert sorted(run.metrics()["loss"]) == list(range(1, STEPS + 1))
    run.assert_nothing_was_lost(STEPS)
    # Over a group, each synchronisation asks for the group's name and then has the weights received.
    calls = (pid.parent / "server.log").read_text().count("POST /collective_rpc")
    assert (calls > 2 * (STEPS - 1)) == (transfer[0] == "collective")


@pytest.mark.guarantee(
    "Of several vLLM servers one may be lost in a step: the others answer, and it gets the next weights"
)
def test_of_two_servers_one_is_killed_and_comes_back(tmp_path: Path) -> None:
    """While it starts, the other answers alone. The next weights reach both."""
    words = ["stage/sampler=vllm_fleet"]
    for name in ("first", "second"):
        words += server_words(f"{RL}.sampler.engines.{name}", free_port())
    with Training(tmp_path, 1000, words) as run:
        killed = run.kill_server("engine-2")
        log = run.folder / "engine-2" / "server.log"
        starts = log.read_text().count(STARTED)

        def asked_again() -> bool:
            """Whether it started again, and got weights and questions since."""
            since = log.read_text().split(STARTED)[starts + 1 :]
            return bool(since) and min(since[0].count("/update_weight_version"), since[0].count("/generate") - 8) > 2

        run.until(asked_again)
        steps = len(run.metrics()["loss"]) - 1
    assert steps > KILLED_AFTER
    assert int((run.folder / "engine-2" / "server.pid").read_text()) != killed
    run.assert_nothing_was_lost(steps)
    asked = [(run.folder / name / "server.log").read_text().count("/generate") for name in ("engine", "engine-2")]
    assert asked[0] > asked[1] > 2 * KILLED_AFTER, "both answer, and the first did so alone for a while"
    assert sum(asked) >= 32 * steps
