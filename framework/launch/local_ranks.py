"""The ranks of a run that is no job: this process is the first of them, and starts the others on this machine."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

from framework.launch.host import GPUS, count_entries, free_port
from framework.run.folder import newest_attempt
from framework.run.worker import ATTEMPT, SUPERVISOR

log = logging.getLogger(__name__)

ENDING_S = 60.0
"""How long (s) the other ranks may take to end after the first, and the first after another one failed."""
POLL_S = 0.1


class RankError(RuntimeError):
    """Another rank failed."""


def wanted_ranks(tree: Mapping[str, Any], gpus: Path = GPUS) -> int:
    """The ranks that the task of the resolved recipe `tree` is to train with on this machine.

    `parallel.devices` names them; with `auto` each GPU that this process may use gets one. 1 where torchrun, srun or a
    supervisor has started the ranks, and for tasks that do not train.
    """
    parallel = (tree.get("task") or {}).get("parallel")
    if not isinstance(parallel, Mapping) or os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS"):
        return 1
    devices = parallel.get("devices", "auto")
    if isinstance(devices, int):
        return devices
    return 1 if parallel.get("accelerator") == "cpu" else max(1, _visible(gpus))


def _visible(gpus: Path) -> int:
    """GPUs of this machine that CUDA shows this process."""
    count = count_entries(gpus)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return count
    named = list(takewhile(lambda word: word not in ("", "-1"), map(str.strip, visible.split(","))))  # as CUDA reads it
    return min(count, len(named))


@contextmanager
def local_ranks(words: Sequence[str], ranks: int, folder: Path) -> Iterator[None]:
    """Be the first of `ranks` ranks within the block; the others run `python -m framework WORDS`.

    They end with this process, whatever ends it, and where the block raises. Raises `RankError` where one of them fails
    after the block has ended well.

    Args:
        words: The words of the command line.
        ranks: Number of ranks; nothing happens where it is 1.
        folder: The run's folder, by which all ranks agree on the attempt's number.
    """
    if ranks == 1:
        yield
        return
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "local",  # by which Lightning knows that it need start nothing
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        ATTEMPT: str(1 + newest_attempt(folder)),
    }
    others = [
        subprocess.Popen(
            [sys.executable, "-m", "framework", *words], stdin=subprocess.DEVNULL,
            process_group=0,  # an interrupt at the terminal is the first rank's, which ends the others
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), SUPERVISOR: str(os.getpid())},
        )
        for rank in range(1, ranks)
    ]  # fmt: skip
    ended = threading.Event()
    threading.Thread(target=_watch, args=(others, ended), daemon=True).start()
    before = {name: os.environ.get(name) for name in (*shared, "RANK", "LOCAL_RANK")}
    os.environ.update(shared | {"RANK": "0", "LOCAL_RANK": "0"})
    try:
        yield
        _leave_group()
        for rank, other in enumerate(others, start=1):
            if code := other.wait(ENDING_S):
                raise RankError(f"rank {rank} ended with exit code {code}")
    finally:
        ended.set()
        _leave_group()
        for other in others:
            other.kill()
            other.wait()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _watch(others: Sequence[subprocess.Popen[bytes]], ended: threading.Event) -> None:
    """End this process where another rank fails, and it does not notice: it may wait for that rank in a collective."""
    while not ended.wait(POLL_S):
        failed = [rank for rank, other in enumerate(others, start=1) if other.poll()]
        if not failed:
            continue
        log.error("rank %d ended with exit code %d", failed[0], others[failed[0] - 1].returncode)
        if not ended.wait(ENDING_S):
            for other in others:
                other.kill()
            sys.stderr.flush()
            os._exit(1)
        return


def _leave_group() -> None:
    """End torch.distributed, if the block started it, so that the next run of this process can."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
