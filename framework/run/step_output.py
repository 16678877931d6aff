"""What a training step returns: the one record that Lightning hands to every callback as `outputs`."""

from __future__ import annotations

from typing import TYPE_CHECKING, NotRequired, Protocol, TypedDict, runtime_checkable

if TYPE_CHECKING:  # this package imports no torch
    from torch import Tensor

REWARD = "reward/mean"
"""The metric that says more than the loss where there is one: the mean reward of the step's answers."""


class StepOutput(TypedDict):
    """One optimizer step, as the training module returns it from `training_step`.

    When the module returns it, what the device computes is still under way: the record then holds what the host knows.
    It is complete once a `StepListener` receives it, as a rule at the end of the next step. Callbacks only read it. So
    no callback depends on its place in the trainer's list. Every number is global: the same on all ranks, except for
    `slices`.
    """

    loss: Tensor
    """The step's mean loss, a detached scalar on the device. Lightning requires the key. Reading it waits for the
    device: `metrics` has the same number.
    """
    tokens: int
    """Positions that the model processed, over all ranks, whether they were supervised or not; padding is left out."""
    samples: int
    """Samples trained (in RL: answers), over all ranks."""
    flops: NotRequired[dict[str, float]]
    """FLOPs over all ranks by part of the model (`framework.model.flops.PARTS`). Sampling is not counted. Absent where
    nobody counts them, which leaves `throughput/...` out of the metrics.
    """
    metrics: dict[str, float]
    """What the loggers, the checkpoint's state and the alarms receive, by metric name. The module returns it with what
    the host knows: `lr`, the loader's `data/...` and the speed (`step_s`, `tokens_per_s`, `samples_per_s`,
    `throughput/...`). Listeners also find `loss`, `gradient_norm` and all else that the device computed.
    """
    slices: NotRequired[int]
    """Slices of the loader that this step consumed on this rank, for the cursor's commit (contract 2). Absent means 1,
    as in supervised training; RL draws more where it filters groups.
    """


@runtime_checkable
class StepListener(Protocol):
    """A callback of the trainer that receives every step once, in order, when the step's metrics have been read."""

    def on_step_read(self, step: int, output: StepOutput) -> None:
        """Receive the complete record of optimizer step `step`, the trainer's step or the one before it."""
