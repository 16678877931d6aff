"""One Lightning batch is one optimizer step (contract 1)."""

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
from framework.data.stream.loader import without_labels
from framework.model.flops import PARTS, TrainingFlops
from framework.model.freeze import set_trainable
from framework.model.language_action import LanguageActionModel
from framework.model.param_groups import parameter_groups
from framework.objective.normalisation import loss_scale, sum_over_ranks
from framework.objective.supervised import next_token_positions, supervised_tokens
from framework.parallel.collectives import max_over_ranks
from framework.parallel.gradients import clip_gradients
from framework.parallel.mesh import DataRank
from framework.parallel.parallelism import Parallelism
from framework.parallel.sharding import reshard, synchronise
from framework.scene.batch import MicroBatch
from framework.training.stages import StageRange, SupervisedStage, make_schedule
from framework.training.transfer import to_device


class StageModule(LightningModule):
    """Training `model` over the steps of `span`, whatever its objective: where it is placed, what optimizes it, what
    its steps take, and what of it a checkpoint must hold beside weights, optimizer and cursor.
    """

    def __init__(self, model: LanguageActionModel, span: StageRange, parallel: Parallelism | None = None) -> None:
        super().__init__()
        self.parallel = parallel or Parallelism()
        self.dp_rank = DataRank()
        self.automatic_optimization = False
        self.model = model
        self.span = span
        set_trainable(model, span.stage.trainable)
        self.flops = TrainingFlops(model, self.parallel.recompute.shares())
        self.work = dict.fromkeys(PARTS, 0.0)

    def configure_model(self) -> None:
        """Find this process's data-parallel rank. On several ranks the model runs unused encoders too, so that all take
        part.
        """
        self.dp_rank = self.parallel.data_rank()
        self.model.run_unused_encoders = self.trainer.world_size > 1

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Optimizer and schedule of the stage, from the recipe."""
        stage = self.span.stage
        groups = parameter_groups(self.model, stage.lr, stage.weight_decay, stage.lr_factors)
        optimizer = stage.optimizer(groups)
        return {"optimizer": optimizer, "lr_scheduler": make_schedule(self.span, optimizer)}

    def begin(self, store_of: Callable[[str], CheckpointStore], resumed: bool) -> None:
        """Before the stage's first step, with the weights that the stage begins with; or, after `load_states`, where it
        is `resumed`, before any are loaded. `store_of` gives a place in the run's folder by name for what must outlive
        attempts.
        """

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps that is the same on all ranks, as JSON."""
        return {}

    def rank_state(self) -> dict[str, list[Any]]:
        """What a checkpoint keeps of this rank, as JSON: lists by name of what any rank could go on with."""
        return {}

    def load_states(self, state: dict[str, Any], rank_state: dict[str, list[Any]]) -> None:
        """Take over the `state` of a checkpoint, and what falls to this rank of all `rank_state`s: its own, or its
        share where the number of ranks that train different samples has changed.
        """

    def on_rollback(self, step: int) -> None:
        """After `step`, the model got the weights of a checkpoint."""

    def apply_gradients(self, counts: bool = True) -> tuple[float, float]:
        """Clip, step and forget the gradients; their norm and the learning rate. A step whose gradient is not finite
        changes neither weights nor the optimizer's state. `counts`: Lightning's global step goes up by one.
        """
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        reshard(self.model)
        norm = clip_gradients(self.model.parameters(), self.span.stage.clip)
        rate: float = optimizer.param_groups[0]["lr"]
        if not torch.isfinite(norm):
            optimizer.zero_grad()  # without gradients a step changes nothing, and still counts
        (optimizer if counts else optimizer.optimizer).step()
        optimizer.zero_grad()
        return float(norm), rate

    def advance_schedule(self) -> None:
        """One step on in the schedule of learning rates."""
        schedule = self.lr_schedulers()
        assert isinstance(schedule, torch.optim.lr_scheduler.LRScheduler)
        schedule.step()

    def _named(self, name: str) -> AbstractContextManager[Any]:
        """Part `name` of the step in a profile, where one is taken."""
        named: AbstractContextManager[Any] = self.trainer.profiler.profile(name)  # type: ignore[attr-defined]
        return named


class SupervisedModule(StageModule):
    """Supervised fine-tuning.

    A batch is the list of a whole step's micro-batches. Their losses are summed and divided once by the step's
    supervised tokens over all ranks, and gradients are synchronised on the last micro-batch alone.
    """

    def transfer_batch_to_device(
        self, batch: list[MicroBatch], device: torch.device, dataloader_idx: int
    ) -> list[MicroBatch]:
        """Move the tensors of each micro-batch; scenes stay where they are. What the step takes is counted before,
        where counting waits for no device.
        """
        self.work = self.flops.of_step(batch)
        return [to_device(micro, device) for micro in batch]

    def training_step(self, batch: list[MicroBatch], batch_idx: int) -> dict[str, Any]:
        """Train one whole optimizer step; returns what the callbacks report."""
        assert isinstance(self.span.stage, SupervisedStage)
        objective = self.span.stage.objective
        counts = sum_over_ranks(self._counts(batch), self.dp_rank.group)
        supervised, tokens, samples = counts.tolist()
        scale = loss_scale(supervised, self.dp_rank.world)
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        work = torch.tensor(list(self.work.values()), dtype=torch.float64).to(self.device)
        rounds = self._as_many_as_other_ranks(batch)
        for index, micro in enumerate(rounds):
            synchronise(self.model, last=index + 1 == len(rounds))
            with self._named("forward"):
                positions, targets = next_token_positions(micro["labels"])
                loss = objective(self.model(micro, positions), self.model.head, targets)
            with self._named("backward"):
                self.manual_backward(loss.total * scale)
            sums += torch.stack([loss.total.detach().double(), loss.correct.double()])
        with self._named("optimizer"):
            norm, rate = self.apply_gradients()
        self.advance_schedule()
        total, correct, *flops = sum_over_ranks(torch.cat([sums, work]), self.dp_rank.group).tolist()
        mean, accuracy = total / supervised, correct / supervised
        metrics = {"loss": mean, "token_accuracy": accuracy, "gradient_norm": norm, "lr": rate}
        told = {"flops": dict(zip(self.work, flops, strict=True)), "metrics": metrics}
        return {"loss": torch.tensor(mean), "tokens": tokens, "samples": samples, **told}

    def _as_many_as_other_ranks(self, batch: list[MicroBatch]) -> list[MicroBatch]:
        """The micro-batches, and as many idle ones as it takes for all ranks to run in step."""
        missing = max_over_ranks(len(batch), self.device, self.dp_rank.group) - len(batch)
        smallest = min(batch, key=lambda micro: micro["input_ids"].numel())
        return batch + [without_labels(smallest)] * missing

    def _counts(self, batch: list[MicroBatch]) -> Tensor:
        """Supervised tokens, all tokens, samples of this rank."""
        counts = [
            [supervised_tokens(m["labels"]), int(m["attention_mask"].sum()), len(m["scenes"])] for m in batch
        ] or [[0, 0, 0]]
        return torch.tensor(counts, dtype=torch.int64).sum(dim=0).to(self.device)
