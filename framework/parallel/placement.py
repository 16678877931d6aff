"""Where a model runs, in which precision, and what is traded for memory and speed."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Placement:
    """Devices, precision, activation checkpointing and compilation of a run.

    `accelerator` and `devices` are Lightning's; more than one process is launched by torchrun or srun, never by
    Lightning itself. `precision` is Lightning's name ("32-true", "bf16-mixed", "bf16-true").
    `activation_checkpointing` recomputes every block in the backward pass; `compile_blocks` compiles each in place.
    `deterministic` asks torch for bitwise-equal reruns. `threads` is the process's number of CPU threads, set at once
    (None: torch's own choice, which depends on the machine).
    """

    def __init__(
        self,
        accelerator: str = "auto",
        devices: int | Literal["auto"] = "auto",
        precision: Literal["32-true", "bf16-mixed", "bf16-true"] = "bf16-mixed",
        activation_checkpointing: bool = False,
        compile_blocks: bool = False,
        deterministic: bool = False,
        threads: int | None = None,
    ) -> None:
        self.accelerator = accelerator
        self.devices = devices
        self.precision = precision
        self.activation_checkpointing = activation_checkpointing
        self.compile_blocks = compile_blocks
        self.deterministic = deterministic
        if threads is not None:
            torch.set_num_threads(threads)

    def trainer_arguments(self) -> dict[str, Any]:
        """Arguments for Lightning's Trainer."""
        return {
            "accelerator": self.accelerator,
            "devices": self.devices,
            "precision": self.precision,
            "deterministic": self.deterministic,
        }

    @property
    def device(self) -> torch.device:
        """Where this process examines a model outside of Lightning."""
        if self.accelerator == "cpu" or not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))

    def prepare(self, blocks: Iterable[nn.Module]) -> None:
        """Checkpoint, then compile, each of `blocks` in place: parameter names stay what they were."""
        for block in blocks:
            if self.activation_checkpointing:
                block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
            if self.compile_blocks:
                block.compile()
