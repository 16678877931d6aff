"""Starts the ranks of `trainee`."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from tests.checkpoint import trainee
from tests.processes import Running, end_well, started_ranks

PATIENCE_S = 240.0


def start(world: int, job: dict[str, Any]) -> AbstractContextManager[list[Running]]:
    """The ranks of one run, killable one by one; in the end all are killed, and their daemons."""
    for folder in (job["out"], job.get("signals", job["out"])):
        Path(folder).mkdir(parents=True, exist_ok=True)
    return started_ranks(world, functools.partial(trainee.main, job))


def results(ranks: Sequence[Running], out: str) -> list[dict[str, Any]]:
    """What each rank wrote. Asserts that all ended well."""
    end_well(ranks, PATIENCE_S)
    return [json.loads(Path(out, f"rank-{rank}.json").read_text()) for rank in range(len(ranks))]


def run(world: int, job: dict[str, Any]) -> list[dict[str, Any]]:
    """What each rank of a run wrote that was left to its end."""
    with start(world, job) as ranks:
        return results(ranks, job["out"])
