"""What every step of the trial is told, and the work that several of them measure."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from framework.run.files import write_json
from tools.bench.sft import SIDE, SIDES, Rows, architecture_of
from tools.bench.sft_sides import SupervisedJob

Size = Literal["0.6b", "2b-vl"]


@dataclass(frozen=True)
class Setting:
    """Where the trial runs. On a CPU each step takes the same branches with the tiny model, for a dry run."""

    device: Literal["cuda", "cpu"]
    """The device."""
    folder: Path
    """Files that a step leaves: memory snapshots, compiled code, checkpoints."""
    result: Path
    """The step's figures."""

    @property
    def dry(self) -> bool:
        """Whether this is a dry run, whose figures mean nothing."""
        return self.device == "cpu"

    @property
    def backend(self) -> Literal["inductor", "eager"]:
        """What compiles: a dry run only traces, as its machine may lack a compiler."""
        return "eager" if self.dry else "inductor"

    def keep(self, figures: Mapping[str, Any]) -> None:
        """Write the figures so far, which outlive the step's time limit."""
        write_json(self.result, figures, durable=False)

    def quiet(self) -> None:
        """Silence what libraries say, and compute a dry run on one thread."""
        warnings.filterwarnings("ignore")
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        if self.dry:
            torch.set_num_threads(1)

    def job(self, size: Size, unequal: bool = False, steps: int = 8, **changes: Any) -> SupervisedJob:
        """A supervised job: rows of equal length, or a realistic mixture of unequal rows, of which each second one has
        images. `changes` are other fields of the job.
        """
        name = "tiny" if self.dry else size
        architecture = architecture_of(name)
        length, rows, micro = (4096, 16, 8) if unequal else (2048, 8, 4)
        images = 4 if size == "2b-vl" else 0  # the language models have a vision tower for form's sake
        fields: dict[str, Any] = {"precision": "bf16-mixed", "attention": "auto"}
        if self.dry:
            length, rows, micro, images, steps = length // 32, 4, 2, 1, 1
            fields |= {"precision": "32-true", "warm_up": 1}
        made = Rows(length, 0.3, images, SIDES.get(name, SIDE), unequal)
        batches = made.steps(architecture, rows, micro, 4 if unequal and not self.dry else 2)
        return SupervisedJob(architecture, [], batches, steps, self.device, **(fields | changes))

    def synchronise(self) -> None:
        """Wait for the device."""
        if self.device == "cuda":
            torch.cuda.synchronize()
