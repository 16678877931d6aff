"""A worker without torch that steps together with its peers, trains nothing, and fails on request.

RANK=0 WORLD_SIZE=2 ... python -m tests.launch.supervisor.toy_worker '{"folder": ..., "steps": 30, "faults": [...]}'
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from framework.launch.supervisor.restart import committed_step
from framework.run.heartbeat import Heartbeat
from framework.run.phases import Phase, phase_ledger
from framework.run.worker import follow_supervisor, is_first_on_node, supervised_attempt

STEP_S = 0.02
EVERY = 5
STOP_SIGNALS: list[int] = []


def main() -> None:
    """Continue from the newest checkpoint to the last step."""
    follow_supervisor()
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda received, _: STOP_SIGNALS.append(received))
    job: dict[str, Any] = json.loads(sys.argv[1])
    folder, rank, attempt = Path(job["folder"]), int(os.environ["RANK"]), supervised_attempt() or 0
    ledger = phase_ledger(folder, attempt)
    start = committed_step(folder)
    ledger.begin(Phase.FIRST_BATCH, start)
    for step in range(start + 1, job["steps"] + 1):
        time.sleep(STEP_S)
        for fault in job.get("faults", []):
            if (fault["rank"], fault["step"]) == (rank, step) and fault.get("attempt", attempt) == attempt:
                fail(fault)
        stopping = wait_for_peers(folder / f"toy-{attempt}", rank, step)
        if step == start + 1:
            ledger.begin(Phase.PRODUCTIVE, step)
        if is_first_on_node():
            print(Heartbeat("toy", attempt, "toy", step, 1.0, 1.0, STEP_S), flush=True)
        if rank == 0 and (step % EVERY == 0 or stopping):
            marker = folder / f"checkpoints/step-{step:08d}.attempt-{attempt}/COMMIT"
            marker.parent.mkdir(parents=True)
            marker.touch()
        if stopping:
            sys.exit(143)


def fail(fault: dict[str, Any]) -> None:
    """Print a line, then stop, be killed, or exit with a code."""
    print(fault.get("say", ""), file=sys.stderr, flush=True)
    if "signal" in fault:
        os.kill(os.getpid(), fault["signal"])
    else:
        os._exit(fault["code"])


def wait_for_peers(folder: Path, rank: int, step: int) -> bool:
    """Wait like a collective until all ranks have reached `step`, for ever if one has died. Returns whether any of them
    has received a stop signal.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{step}-{rank}-{bool(STOP_SIGNALS)}").touch()
    while len(here := list(folder.glob(f"{step}-*"))) < int(os.environ["WORLD_SIZE"]):
        time.sleep(0.002)
    return any(peer.name.endswith("True") for peer in here)


if __name__ == "__main__":
    main()
