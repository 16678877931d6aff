"""What all ranks of a node need to know of a folder is found out by one of them: a search of millions of files is slow,
and on a shared file system the ranks' searches slow each other.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from framework.run.files import read_json, write_json
from framework.run.lock import guarded
from framework.run.worker import ATTEMPT, local_workers

KEPT_S = 86400.0
"""Seconds after which what an earlier attempt found is removed."""


def once_per_node(cache: Path, facts: object, find: Callable[[], Any]) -> Any:
    """Returns what `find` returns, as JSON has it; of the ranks of this node that ask for the same `facts` in this
    attempt of the run, one calls it. A process that is alone calls it each time: a folder may have changed.

    Args:
        cache: Folder for the answers, on a disk that the node's ranks share.
        facts: What the answer depends on.
        find: Finds it out. What it raises is raised, and the next rank tries.
    """
    if local_workers() == 1:
        return find()
    digest = hashlib.sha256(repr((facts, _attempt())).encode()).hexdigest()[:16]
    answer = cache / f"found-{digest}.json"
    cache.mkdir(parents=True, exist_ok=True)
    with guarded(answer.with_suffix(".lock")):
        known = read_json(answer)
        if known is None:
            _remove_old(cache)
            known = [find()]
            write_json(answer, known, durable=False)
    return known[0]


def _attempt() -> tuple[object, ...]:
    """What the ranks of a node have in common in one attempt, and no other process has: the process that started them,
    and its count of attempts.
    """
    variables = [os.environ.get(name, "") for name in (ATTEMPT, "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")]
    return os.uname().nodename, os.getppid(), _started(os.getppid()), *variables


def _started(process: int) -> str:
    """When a process started, which tells it from a later one of the same number."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _remove_old(cache: Path) -> None:
    for path in cache.glob("found-*"):
        if time.time() - path.stat().st_mtime > KEPT_S:
            path.unlink(missing_ok=True)
