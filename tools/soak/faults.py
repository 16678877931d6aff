"""What happens to a soak's job: each fault strikes, and says what it did; None where there was nothing to strike."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from framework.launch.supervisor.restart import FailureLedger
from tools.soak.nodes import LOOK_S, NODES, Job, kill
from tools.soak.storage import Store

CACHED_STEPS = 8
"""Steps that a run may train during an outage, from what it has fetched."""
FULL_S = 300.0
"""A full disk is mended when it has failed an attempt, at the latest after so many seconds."""


@dataclass
class Scene:
    """Where faults strike: the job, its object store, the disk of its checkpoints (None: none that may fill)."""

    job: Job
    store: Store
    disk: Path | None
    dice: random.Random


def rank_killed(scene: Scene) -> str | None:
    """kill -9 of one worker."""
    node = scene.dice.randrange(NODES)
    pid = scene.job.worker(node)
    return f"rank {node} killed" if pid is not None and kill(pid, signal.SIGKILL) else None


def node_lost(scene: Scene) -> str | None:
    """A supervisor and all its processes are gone."""
    node = scene.dice.randrange(NODES)
    scene.job.lose(node)
    return f"node {node} lost"


def hang(scene: Scene) -> str | None:
    """A worker is stopped, and all wait for it."""
    node = scene.dice.randrange(NODES)
    pid = scene.job.worker(node)
    return f"rank {node} stopped" if pid is not None and kill(pid, signal.SIGSTOP) else None


def storage_outage(scene: Scene) -> str | None:
    """The store is away, for shorter or for longer than the loader is patient; it is back when the run has gone on for
    so long without it that it might come to its end.
    """
    seconds = scene.dice.choice((3.0, 15.0))
    scene.store.stop()
    end, step = time.monotonic() + seconds, scene.job.step()
    while time.monotonic() < end and scene.job.step() < step + CACHED_STEPS:
        time.sleep(LOOK_S)
    scene.store.start()
    return f"storage away for {seconds:.0f} s"


def daemon_killed(scene: Scene) -> str | None:
    """kill -9 of the process that writes a rank's checkpoints."""
    node = scene.dice.randrange(NODES)
    pid = scene.job.daemon(node)
    return f"checkpoint daemon of rank {node} killed" if pid is not None and kill(pid, signal.SIGKILL) else None


def disk_full(scene: Scene) -> str | None:
    """The disk of the checkpoints fills up, until that has failed an attempt."""
    if scene.disk is None:
        return None
    failed, filler = len(FailureLedger(scene.job.folder).history), scene.disk / "filler"
    try:
        with filler.open("wb", buffering=0) as file:
            while file.write(bytes(1 << 16)):
                pass
    except OSError:
        pass  # that is what it is for
    end = time.monotonic() + FULL_S
    while time.monotonic() < end and not scene.job.over:
        if len(FailureLedger(scene.job.folder).history) > failed:
            break
        time.sleep(LOOK_S)
    filler.unlink()
    return "disk full"


FAULTS: tuple[Callable[[Scene], str | None], ...] = (
    rank_killed,
    node_lost,
    hang,
    storage_outage,
    daemon_killed,
    disk_full,
)


def small_disk(folder: Path, size: str) -> bool:
    """Mount a small disk at `folder`; False where that is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def unmount(folder: Path) -> None:
    """Take the small disk away."""
    subprocess.run(["umount", str(folder)], check=True)
