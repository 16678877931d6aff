"""Writes parts as tasks of a Ray cluster that runs, and whose nodes share the folders and this checkout."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework.data.shards.parts import PartJob
from framework.data.shards.processes import TRIES, Outcome, retried
from framework.scene.types import SceneError

CHECKOUT = Path(__file__).resolve().parents[2]
AHEAD = 2
"""Tasks that are submitted for each core of the cluster: Ray's scheduler holds no more."""


@dataclass(frozen=True)
class RayEngine:
    """See `Engine`."""

    address: str
    """The cluster's address; "auto" finds the one that this node belongs to."""

    def __call__(self, job: PartJob, numbers: Sequence[int]) -> Iterator[Outcome]:
        """Yields the outcome of each part. Raises `SceneError` where there is no cluster."""
        try:
            import ray
        except ModuleNotFoundError as error:
            raise SceneError("--engine ray: Ray is not installed; install the extra `ray`") from error
        path = os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH")]))
        try:
            ray.init(
                self.address, runtime_env={"env_vars": {"PYTHONPATH": path}}, log_to_driver=False, logging_level="error"
            )
        except (ConnectionError, ValueError) as error:
            raise SceneError(f"--engine ray: {error}; start a cluster by `ray start --head`") from error
        try:
            yield from _outcomes(ray, job, list(numbers))
        finally:
            ray.shutdown()


def _outcomes(ray: Any, job: PartJob, waiting: list[int]) -> Iterator[Outcome]:
    # Ray repeats a task whose process or node died, and leaves errors of the task itself to `retried`.
    task = ray.remote(num_cpus=1, max_retries=TRIES - 1)(_attempt)
    running: dict[Any, int] = {}
    while waiting or running:
        most = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
        while waiting and len(running) < most:
            number = waiting.pop(0)
            running[task.remote(job.only(number), number)] = number
        for finished in ray.wait(list(running))[0]:
            number = running.pop(finished)
            try:
                yield number, ray.get(finished)
            except ray.exceptions.RayError as error:
                yield number, f"{type(error).__name__}: {str(error).splitlines()[0]}"


def _attempt(job: PartJob, number: int) -> str | None:
    return retried(lambda: job.attempt(number), job.name(number))
