"""How many processes prepare data: measured, not guessed."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from framework.run.files import write_text
from framework.run.layout import DATA_PACE_FILE

MARGIN = 1.5
"""Workers are given this much more to do with than the mean step takes: steps vary, and cores are shared."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Means over the last steps of a rank, in seconds: the step without waiting for data, waiting, what a worker
    spends on a rank's share of a step (`fetch_s` on storage, `render_s` on decoding and rendering).
    """

    step_s: float
    wait_s: float
    fetch_s: float
    render_s: float

    @property
    def starves(self) -> bool:
        """Whether a tenth of the time is lost on waiting."""
        return self.wait_s > 0.1 * (self.step_s + self.wait_s)

    @property
    def workers(self) -> int:
        """How many workers keep up with such steps."""
        return max(1, math.ceil(MARGIN * (self.fetch_s + self.render_s) / max(self.step_s, 1e-9)))

    def advice(self, workers: int, cores: int) -> str:
        """What a user of `workers` workers and `cores` cores a rank is to do about waiting."""
        cause = "storage" if self.fetch_s > self.render_s else "decoding and rendering"
        told = (
            f"training waits {self.wait_s:.2f} s of a {self.step_s + self.wait_s:.2f} s step for data, mostly on "
            f"{cause} ({self.fetch_s:.2f} s on storage and {self.render_s:.2f} s on rendering a step's share): "
        )
        if cause == "storage":
            return told + "raise data.shard_prefetch_steps, or look at the bandwidth to storage"
        if workers < min(self.workers, cores):
            return told + f"set data.workers: {min(self.workers, cores)}"
        return told + "make images smaller (data.image_width) or give each rank more cores"


def save_pace(pace: Pace, folder: Path) -> None:
    """Keep what was measured in the run's folder, for its next attempt."""
    write_text(folder / DATA_PACE_FILE, json.dumps(asdict(pace)), durable=False)


def choose_workers(folder: Path, ranks: int) -> int:
    """Workers for each of a node's `ranks`: what the run's last attempt measured, else a core for each, less one for
    the rank itself.
    """
    cores = max(1, cores_of_rank(ranks) - 1)
    path = folder / DATA_PACE_FILE
    if not path.is_file():
        return cores
    return min(cores, Pace(**json.loads(path.read_text())).workers)


def cores_of_rank(ranks: int) -> int:
    """The cores that one of a node's `ranks` may use."""
    return max(1, len(os.sched_getaffinity(0)) // ranks)
