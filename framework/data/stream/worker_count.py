"""Chooses how many processes prepare data, from measurements."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from framework.run.files import write_text
from framework.run.layout import DATA_PACE_FILE

MARGIN = 1.5
"""Capacity of the workers relative to the mean step: steps vary, and cores are shared."""


@dataclass(frozen=True, slots=True)
class StepTimings:
    """Mean seconds over the last steps of a rank."""

    step_s: float
    """A step, without waiting for data."""
    wait_s: float
    """Waiting for data."""
    fetch_s: float
    """A worker's waiting for storage, for the rank's slice of a step."""
    render_s: float
    """A worker's decoding and rendering, for the rank's slice of a step."""

    @property
    def is_starved(self) -> bool:
        """Whether a tenth of the time is spent waiting."""
        return self.wait_s > 0.1 * (self.step_s + self.wait_s)

    @property
    def workers(self) -> int:
        """The number of workers that keep up with such steps."""
        return max(1, math.ceil(MARGIN * (self.fetch_s + self.render_s) / max(self.step_s, 1e-9)))

    def advice(self, workers: int, cores: int) -> str:
        """Returns what to change when a rank with `workers` workers and `cores` cores waits for data."""
        cause = "storage" if self.fetch_s > self.render_s else "decoding and rendering"
        message = (
            f"training waits {self.wait_s:.2f} s of a {self.step_s + self.wait_s:.2f} s step for data, mostly on "
            f"{cause} ({self.fetch_s:.2f} s on storage and {self.render_s:.2f} s on rendering a rank's samples): "
        )
        if cause == "storage":
            return message + "raise data.shard_prefetch_steps, or check the bandwidth to storage"
        if workers < min(self.workers, cores):
            return message + f"set data.workers: {min(self.workers, cores)}"
        return message + "make images smaller (data.image_width) or give each rank more cores"


def save_timings(timings: StepTimings, folder: Path) -> None:
    """Writes the timings to the run's folder, for its next attempt."""
    write_text(folder / DATA_PACE_FILE, json.dumps(asdict(timings)), durable=False)


def choose_workers(folder: Path, ranks: int) -> int:
    """Returns the workers of each of a node's `ranks`: as many as the run's last attempt needed, else one a core, less
    one core for the rank itself.
    """
    cores = max(1, cores_of_rank(ranks) - 1)
    path = folder / DATA_PACE_FILE
    if not path.is_file():
        return cores
    return min(cores, StepTimings(**json.loads(path.read_text())).workers)


def cores_of_rank(ranks: int) -> int:
    """Returns the cores that one of a node's `ranks` may use."""
    return max(1, len(os.sched_getaffinity(0)) // ranks)
