"""Reinforcement learning with a real vLLM server on a CPU, which is killed on the way.

Wants the python of an environment with vLLM 0.32 in VLLM_PYTHON; CONTRIBUTING.md says how to make one.
"""

from __future__ import annotations

import csv
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[4]
STEPS = 20
KILLED_AFTER = 8
RL = "curriculum.stages.rl"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(7200),
    pytest.mark.skipif("VLLM_PYTHON" not in os.environ, reason="VLLM_PYTHON names no python with vLLM"),
]


def _words(folder: Path) -> list[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    surroundings = "{VLLM_CPU_KVCACHE_SPACE:'1',VLLM_CPU_OMP_THREADS_BIND:nobind,OMP_NUM_THREADS:'1'}"
    return [
        "recipe=rl_dapo", "scale=tiny", f"curriculum.max_steps_per_stage={STEPS}", "sources.world_hard.scenes=24",
        "run.name=vllm",
        "evals=[]", "init_from=null", "stage.global_batch=8", f"{RL}.group_size=4",
        "stage/filter=none", "stage/prompt_weights=none", "stage/sampler=vllm", f"{RL}.sampler.url=http://127.0.0.1:{port}",
        f"{RL}.sampler.patience_s=3000", f"{RL}.sampler.dtype=float32",
        f"{RL}.sampler.max_logprob_gap=0.001", f"{RL}.max_logprob_gap=0.001",
        f"+{RL}.sampler.process.options.enforce-eager=true",
        # vLLM 0.32 cannot rewind a seeded generator on a CPU, which it does where a prompt is read in parts.
        f"+{RL}.sampler.process.options.no-enable-chunked-prefill=true",
        f"+{RL}.sampler.process.options.max-num-batched-tokens=16384",
        f"{RL}.sampler.process.environment={surroundings}",
        f"paths.runs={folder}/runs", f"paths.cache={folder}/cache",
    ]  # fmt: skip


def _metrics(folder: Path) -> dict[str, dict[int, float]]:
    file = folder / "runs" / "vllm" / "metrics.csv"
    found: dict[str, dict[int, float]] = {}
    if file.exists():
        with file.open(newline="") as stream:
            for row in csv.DictReader(stream):
                found.setdefault(row["name"], {})[int(row["step"])] = float(row["value"])
    return found


@pytest.mark.guarantee("A killed vLLM server is restarted, receives its weights and generates the missing answers")
@pytest.mark.parametrize("transfer", [["disk"], ["collective", f"{RL}.sampler.transfer.backend=gloo"]])
def test_a_killed_server_is_started_again_and_nothing_is_lost(tmp_path: Path, transfer: list[str]) -> None:
    log = tmp_path / "run.log"
    way = [f"stage/sampler/transfer={transfer[0]}", *transfer[1:]]
    with log.open("w") as stream:
        command = [sys.executable, "-m", "framework", *_words(tmp_path), *way]
        run = subprocess.Popen(command, cwd=REPOSITORY, stdout=stream, stderr=subprocess.STDOUT)
    pid = tmp_path / "runs" / "vllm" / "engine" / "server.pid"
    while run.poll() is None and len(_metrics(tmp_path).get("loss", {})) < KILLED_AFTER:
        time.sleep(0.2)
    assert run.poll() is None, log.read_text()[-3000:]
    first = int(pid.read_text())
    os.kill(first, signal.SIGKILL)
    assert run.wait() == 0, log.read_text()[-3000:]
    assert int(pid.read_text()) != first
    metrics = _metrics(tmp_path)
    assert sorted(metrics["loss"]) == list(range(1, STEPS + 1))
    # Each step was drawn by the weights of the step before, all answers to all prompts, and scored as it was drawn.
    assert metrics["answers/weight_version"] == {step: step - 1 for step in range(1, STEPS + 1)}
    assert set(metrics["rl/groups"].values()) == {8.0}
    assert set(metrics["rl/rounds"].values()) == {1.0}
    assert max(metrics["policy/engine_error_max"].values()) < 1e-3
    # Over a group, each synchronisation asks for the group's name and then has the weights received.
    calls = (pid.parent / "server.log").read_text().count("POST /collective_rpc")
    assert (calls > 2 * (STEPS - 1)) == (transfer[0] == "collective")
