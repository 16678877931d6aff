"""What a training step returns: the one record that Lightning hands to every callback as `outputs`."""

from __future__ import annotations

from typing import TYPE_CHECKING, NotRequired, TypedDict

if TYPE_CHECKING:  # this package imports no torch
    from torch import Tensor


class StepOutput(TypedDict):
    """One optimizer step, as the training module returns it from `training_step`.

    The record is complete when the module returns it, and callbacks only read it. So no callback depends on its place
    in the trainer's list. Every number is global: the same on all ranks, except for `slices`.
    """

    loss: Tensor
    """The step's mean loss, a detached scalar. Lightning requires the key."""
    tokens: int
    """Positions that the model processed, over all ranks, whether they were supervised or not; padding is left out."""
    samples: int
    """Samples trained (in RL: answers), over all ranks."""
    flops: NotRequired[dict[str, float]]
    """FLOPs over all ranks by part of the model (`framework.model.flops.PARTS`). Sampling is not counted. Absent where
    nobody counts them, which leaves `throughput/...` out of the metrics.
    """
    metrics: dict[str, float]
    """What the loggers, the checkpoint's state and the alarms receive, by metric name. Holds at least `loss`,
    `gradient_norm` and `lr`; the module adds the loader's `data/...` and the speed (`step_s`, `tokens_per_s`,
    `samples_per_s`, `throughput/...`) before it returns.
    """
    slices: NotRequired[int]
    """Slices of the loader that this step consumed on this rank, for the cursor's commit (contract 2). Absent means 1,
    as in supervised training; RL draws more where it filters groups.
    """
