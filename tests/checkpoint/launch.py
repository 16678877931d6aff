"""Starts the ranks of `trainee`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE_S = 240.0


def start(world: int, job: dict[str, Any]) -> list[subprocess.Popen[str]]:
    """The ranks of one run, in one process group: as a launcher would, but killable one by one."""
    Path(job["out"]).mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks: list[subprocess.Popen[str]] = []
    for rank in range(world):
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        places |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        ranks.append(
            subprocess.Popen(
                [sys.executable, "-m", "tests.checkpoint.trainee", json.dumps(job)],
                cwd=REPOSITORY,
                env={**os.environ, **{name: str(value) for name, value in places.items()}},
                stderr=subprocess.PIPE,
                text=True,
                process_group=ranks[0].pid if ranks else 0,
            )
        )
    return ranks


def results(ranks: list[subprocess.Popen[str]], out: str) -> list[dict[str, Any]]:
    """What each rank wrote. Asserts that all ended well."""
    for rank in ranks:
        _, said = rank.communicate(timeout=PATIENCE_S)
        assert rank.returncode == 0, said[-4000:]
    return [json.loads(Path(out, f"rank-{rank}.json").read_text()) for rank in range(len(ranks))]


def end(ranks: list[subprocess.Popen[str]]) -> None:
    """Kill what is left, daemons too, as a launcher does after one rank has died."""
    with suppress(ProcessLookupError):
        os.killpg(ranks[0].pid, signal.SIGKILL)
    for rank in ranks:
        rank.communicate(timeout=PATIENCE_S)
