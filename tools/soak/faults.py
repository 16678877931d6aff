"""The faults of a soak. Each strikes and returns what it did; None where there was nothing to strike."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from framework.launch.supervisor.restart import FailureLedger
from tools.soak.nodes import NODES, POLL_S, SoakedRun, kill
from tools.soak.storage import Store

CACHED_STEPS = 8
"""Steps that the run may train during an outage on what it has fetched."""
FULL_S = 300.0
"""A full disk is emptied once it has failed an attempt, at the latest after so long (s)."""


@dataclass
class Targets:
    """What the faults strike."""

    run: SoakedRun
    """The run, with its nodes."""
    store: Store
    """The object store of its samples."""
    disk: Path | None
    """The disk of its checkpoints; None: it has none of its own that may fill."""
    rng: random.Random
    """Draws where and how long."""


def rank_killed(targets: Targets) -> str | None:
    """kill -9 of one worker."""
    node = targets.rng.randrange(NODES)
    pid = targets.run.worker(node)
    return f"rank {node} killed" if pid is not None and kill(pid, signal.SIGKILL) else None


def node_lost(targets: Targets) -> str | None:
    """A supervisor and all its processes are killed."""
    node = targets.rng.randrange(NODES)
    targets.run.lose(node)
    return f"node {node} lost"


def hang(targets: Targets) -> str | None:
    """A worker is stopped, and all others wait for it."""
    node = targets.rng.randrange(NODES)
    pid = targets.run.worker(node)
    return f"rank {node} stopped" if pid is not None and kill(pid, signal.SIGSTOP) else None


def storage_outage(targets: Targets) -> str | None:
    """The store is away for less or more than the loader's timeout. It is back early when the run has trained so many
    steps without it that the run might end.
    """
    seconds = targets.rng.choice((3.0, 15.0))
    targets.store.stop()
    end, step = time.monotonic() + seconds, targets.run.step()
    while time.monotonic() < end and targets.run.step() < step + CACHED_STEPS:
        time.sleep(POLL_S)
    targets.store.start()
    return f"storage away for {seconds:.0f} s"


def daemon_killed(targets: Targets) -> str | None:
    """kill -9 of the process that writes a rank's checkpoints."""
    node = targets.rng.randrange(NODES)
    pid = targets.run.daemon(node)
    return f"checkpoint daemon of rank {node} killed" if pid is not None and kill(pid, signal.SIGKILL) else None


def disk_full(targets: Targets) -> str | None:
    """The disk of the checkpoints is full until an attempt has failed."""
    if targets.disk is None:
        return None
    failed, filler = len(FailureLedger(targets.run.folder).history), targets.disk / "filler"
    try:
        with filler.open("wb", buffering=0) as file:
            while file.write(bytes(1 << 16)):
                pass
    except OSError:
        pass  # the disk is full now
    end = time.monotonic() + FULL_S
    while time.monotonic() < end and not targets.run.ended:
        if len(FailureLedger(targets.run.folder).history) > failed:
            break
        time.sleep(POLL_S)
    filler.unlink()
    return "disk full"


FAULTS: tuple[Callable[[Targets], str | None], ...] = (
    rank_killed,
    node_lost,
    hang,
    storage_outage,
    daemon_killed,
    disk_full,
)


def small_disk(folder: Path, size: str) -> bool:
    """Mount a small disk at `folder`. Returns False where that is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def unmount(folder: Path) -> None:
    """Unmount the small disk."""
    subprocess.run(["umount", str(folder)], check=True)
