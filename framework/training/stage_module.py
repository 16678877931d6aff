"""The Lightning module of a stage, whatever its objective: optimizer, schedule and what a checkpoint keeps."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from framework.checkpoint.store import CheckpointStore
from framework.model.flops import PARTS, TrainingFlops
from framework.model.freeze import set_trainable
from framework.model.language_action import LanguageActionModel
from framework.model.param_groups import parameter_groups
from framework.parallel.gradients import clip_gradients
from framework.parallel.mesh import DataRank
from framework.parallel.parallelism import Parallelism
from framework.parallel.sharding import reshard
from framework.run.step_output import StepListener, StepOutput
from framework.tracking.step_meter import StepMeter
from framework.training.datamodule import StageData
from framework.training.late_step import Finish, LateStep
from framework.training.stages import StageRange, make_schedule


class StageModule(LightningModule):
    """Trains a model over the steps of one stage.

    Subclasses implement `training_step`, which takes one whole optimizer step per Lightning batch (contract 1) with
    manual optimization, and returns a `StepOutput`. The step reads nothing from the device. Its numbers are read at the
    end of the next step, or when `read_steps` is called, and handed to the callbacks that are `StepListener`s.

    Args:
        model: The model, already on its mesh (see `build_model`).
        stage_range: The stage and the optimizer steps that it covers.
        parallel: The run's parallelism; None for one process in float32.
    """

    def __init__(
        self, model: LanguageActionModel, stage_range: StageRange, parallel: Parallelism | None = None
    ) -> None:
        super().__init__()
        self.parallel = parallel or Parallelism()
        self.dp_rank = DataRank()
        self.automatic_optimization = False
        self.model = model
        self.stage_range = stage_range
        set_trainable(model, stage_range.stage.trainable)
        self.flops = TrainingFlops(model, self.parallel.recompute.shares())
        self.step_flops = dict.fromkeys(PARTS, 0.0)
        self.step_meter: StepMeter | None = None  # set by the `StepLogger` before training
        self._late: LateStep | None = None

    def configure_model(self) -> None:
        """Look up this rank's place in data parallelism. With several ranks the model runs unused encoders too, so that
        every rank takes part in the same collectives.
        """
        self.dp_rank = self.parallel.data_rank()
        self.model.run_unused_encoders = self.trainer.world_size > 1

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The stage's optimizer and learning-rate schedule."""
        stage = self.stage_range.stage
        groups = parameter_groups(self.model, stage.lr, stage.weight_decay, stage.lr_factors)
        optimizer = stage.optimizer(groups)
        return {"optimizer": optimizer, "lr_scheduler": make_schedule(self.stage_range, optimizer)}

    def start_stage(self, store_of: Callable[[str], CheckpointStore], resumed: bool) -> None:
        """Hook, called before the stage's first step.

        At a fresh start the model holds the weights that the stage starts from. When the stage is `resumed`, the call
        comes after `load_states` and before the checkpoint's weights are loaded. `store_of(name)` opens a store in the
        run's folder for tensors that must outlive the attempt.
        """

    def state(self) -> dict[str, Any]:
        """JSON that a checkpoint keeps once, because it is equal on all ranks."""
        return {}

    def rank_state(self) -> dict[str, list[Any]]:
        """JSON that a checkpoint keeps per rank: named lists whose items any rank can continue with."""
        return {}

    def load_states(self, state: dict[str, Any], rank_state: dict[str, list[Any]]) -> None:
        """Restore a checkpoint's `state`, and this rank's part of all `rank_state` lists: its own items or, when the
        number of data-parallel ranks has changed, its share of all.
        """

    def on_rollback(self, step: int) -> None:
        """Hook, called after `step` when the model has been rolled back to a checkpoint's weights."""

    def apply_gradients(self, counts: bool = True) -> tuple[Tensor, float]:
        """Clip the gradients, step the optimizer and clear the gradients.

        A step whose gradient norm is not finite changes neither weights nor optimizer state. Optimizers that can skip a
        step on the device do so, by the protocol of `torch.amp.GradScaler`; for others the norm is read. Unless the
        step `counts`, Lightning's global step stays. Returns the gradient norm before clipping, a scalar on the device,
        and the learning rate.
        """
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        reshard(self.model)
        norm = clip_gradients(self.model.parameters(), self.stage_range.stage.clip)
        lr: float = optimizer.param_groups[0]["lr"]
        skipped: Any = optimizer.optimizer
        # torch's SGD has a momentum of whatever was in memory when it skips its first step.
        if getattr(skipped, "_step_supports_amp_scaling", False) and not isinstance(skipped, torch.optim.SGD):
            skipped.found_inf = norm.isfinite().logical_not().float()
        elif not norm.isfinite():
            optimizer.zero_grad()  # a step without gradients changes nothing, and still counts
        (optimizer if counts else optimizer.optimizer).step()
        optimizer.zero_grad()
        return norm, lr

    def advance_schedule(self) -> None:
        """Advance the learning-rate schedule by one step."""
        schedule = self.lr_schedulers()
        assert isinstance(schedule, torch.optim.lr_scheduler.LRScheduler)
        schedule.step()

    def complete(self, output: StepOutput, numbers: Tensor, finish: Finish) -> StepOutput:
        """Report the step before, and add the loader's metrics and the step's speed to the metrics of the step, which
        ends with this call.

        `numbers` `(n,)`, on the device, are read a step later; `finish` makes the rest of the metrics of them.
        """
        before, self._late = self._late, LateStep.of(self.trainer.global_step, output, numbers, finish)
        self._report(before)  # waits for the device, which is part of the step's time
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, StageData):
            output["metrics"] |= data.loader.metrics
        output["metrics"] |= self.parallel.compilation.metrics()
        if self.step_meter is not None:
            self.step_meter.end_step(self.trainer.global_step, output)
        return output

    def read_steps(self) -> None:
        """Read the last step now, unless it was read before, and report it. Waits for the device."""
        late, self._late = self._late, None
        self._report(late)

    def on_train_epoch_end(self) -> None:
        """Report the last step."""
        self.read_steps()

    def _report(self, late: LateStep | None) -> None:
        if late is None:
            return
        output = late.read()
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, StepListener):
                callback.on_step_read(late.step, output)

    def _profile(self, name: str) -> AbstractContextManager[Any]:
        """Names this part of the step in the profiler's trace, when one is recorded."""
        profile: AbstractContextManager[Any] = self.trainer.profiler.profile(name)  # type: ignore[attr-defined]
        return profile
