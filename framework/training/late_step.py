"""A step whose numbers are still on the device: they are read a step later, when the device is done with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from framework.run.step_output import StepOutput

Finish = Callable[[Tensor], dict[str, float]]
"""Makes metrics of a step's numbers, a float64 tensor `(n,)` on the host. It may raise what ends the run."""


@dataclass(frozen=True, slots=True)
class LateStep:
    """A step that was handed to the device, and whose numbers are on their way to the host."""

    step: int
    """The optimizer step."""
    output: StepOutput
    """What the host knows of it."""
    numbers: Tensor
    """`(n,)` float64 on the host, valid once `copied`."""
    copied: torch.cuda.Event | None
    """Marks the end of the copy; None where the numbers were on the host."""
    finish: Finish
    """Makes the rest of the metrics of the numbers."""

    @classmethod
    def of(cls, step: int, output: StepOutput, numbers: Tensor, finish: Finish) -> LateStep:
        """Start the copy of `numbers` `(n,)`, without waiting for the device. They must not change afterwards."""
        if not numbers.is_cuda:
            return cls(step, output, numbers.double(), None, finish)
        host = torch.empty(numbers.shape, dtype=torch.float64, pin_memory=True)
        host.copy_(numbers.double(), non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        return cls(step, output, host, copied, finish)

    def read(self) -> StepOutput:
        """Wait for the numbers, and complete the step's output in place. Raises what `finish` raises."""
        if self.copied is not None:
            self.copied.synchronize()
        self.output["metrics"] |= self.finish(self.numbers)
        return self.output
