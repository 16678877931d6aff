"""The fine-tuning benchmark's job, and ours of its sides: through Lightning, and a plain loop.

All sides, the peers of `tools.bench.peers` too, train the same weights on the same batches with the same optimizer,
schedule, clipping and precision. With the attention `auto` ours attends by the lengths of samples, as it does by
default, and a peer by `sdpa`, its own default; any other is that of all sides.
"""

from __future__ import annotations

import functools
import itertools
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from lightning.pytorch import Callback, Trainer

from framework.checkpoint.policy import CheckpointPolicy
from framework.checkpoint.store import CheckpointStore
from framework.model.backbone import RandomBackbone
from framework.model.kernels import FusedLoss, Kernels, LigerKernels
from framework.model.language_action import LanguageActionModel
from framework.model.param_groups import parameter_groups
from framework.objective.supervised import CrossEntropy
from framework.parallel.compilation import Compilation
from framework.parallel.float8 import Float8
from framework.parallel.gradients import clip_gradients
from framework.parallel.parallelism import Parallelism
from framework.parallel.precision import Precision
from framework.parallel.recompute import Recompute
from framework.run.phases import phase_ledger
from framework.scene.batch import MicroBatch
from framework.tracking.phases import PhaseRecorder
from framework.tracking.tracking import Tracking
from framework.training.callbacks.checkpoint import Checkpointing
from framework.training.callbacks.data_stall import DataStall
from framework.training.sft.module import SupervisedModule
from framework.training.sft.prepare import prepare_step
from framework.training.stages import StageRange, SupervisedStage, make_schedule
from tools.bench.replay import ReplayData

WARM_UP = 8
"""Steps at the start of each turn that do not count: memory is taken, blocks are compiled."""
NAME = "sft"
PRECISIONS = {
    "32-true": Precision(),
    "bf16-mixed": Precision("float32", "bfloat16"),
    "bf16-true": Precision("bfloat16", "bfloat16"),
    "fp8-tensorwise": Precision("float32", "bfloat16", Float8(["*language_model.layers.*_proj"], "tensorwise")),
    "fp8-rowwise": Precision("float32", "bfloat16", Float8(["*language_model.layers.*_proj"], "rowwise")),
}
"""Ours by Lightning's name, or one of our own, which no peer has."""
KERNELS: dict[str, Kernels | None] = {"eager": None, "liger": LigerKernels(), "fused_loss": FusedLoss()}


@dataclass(frozen=True)
class SupervisedJob:
    """What every side trains: `steps` steps that count, over `batches` in turn, of a Qwen3-VL of `architecture`.

    `precision` is one of `PRECISIONS`, `kernels` of `KERNELS`, which are ours alone. `checkpointing` recomputes blocks
    in the backward pass, `compiled` compiles (ours block by block by `backend`, a peer as its own flag does). A peer
    logs every `peer_logging` steps, ours every step. The first `warm_up` steps, at least one, do not count.
    """

    architecture: Mapping[str, Any]
    special_tokens: Sequence[str]
    batches: list[list[MicroBatch]]
    steps: int
    device: Literal["cpu", "cuda"] = "cpu"
    precision: str = "32-true"
    attention: str = "sdpa"
    optimizer: Literal["fused", "foreach", "plain"] = "fused"
    checkpointing: bool = False
    compiled: bool = False
    peer_logging: int = 10
    backend: str = "inductor"
    kernels: str = "eager"
    warm_up: int = WARM_UP

    def build(self, peer: bool = False) -> LanguageActionModel:
        """The model without sensor encoders, for ours or a peer, its weights drawn on the device: the same ones at
        every call.
        """
        attention = "sdpa" if peer and self.attention == "auto" else self.attention
        backbone, kernels = RandomBackbone(self.architecture, attention=attention), KERNELS[self.kernels]
        drawn_here = self.device == "cpu"
        torch.manual_seed(0)
        model = LanguageActionModel(
            backbone, {}, self.special_tokens, initialize=drawn_here, kernels=None if peer else kernels
        )
        if not drawn_here:
            model.materialize(torch.device(self.device))
            draw(model)
        return model.train()

    def parallelism(self) -> Parallelism:
        """Ours: one device, in the job's precision."""
        return Parallelism(
            {"cpu": "cpu", "cuda": "gpu"}[self.device],
            devices=1,
            precision=PRECISIONS[self.precision],
            recompute=Recompute(every=1 if self.checkpointing else None),
            compilation=Compilation("blocks" if self.compiled else "none", self.backend),
        )

    @property
    def length(self) -> int:
        """Steps of a turn."""
        return self.warm_up + self.steps

    @property
    def stage_range(self) -> StageRange:
        """The stage that all sides train; a turn stops a step before its end, where a checkpoint would be saved."""
        from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup

        optimizer = functools.partial(
            torch.optim.AdamW,
            betas=(0.9, 0.95),
            fused=self.optimizer == "fused",
            foreach=self.optimizer == "foreach",
        )
        stage = SupervisedStage(
            mixture=None,  # type: ignore[arg-type]  # the batches were read before
            objective=CrossEntropy(),
            optimizer=optimizer,
            schedule=functools.partial(get_cosine_with_min_lr_schedule_with_warmup, min_lr_rate=0.1),
            steps=self.length + 1,
            lr=1e-4,
        )
        return StageRange(NAME, stage, 0, self.length + 1)


@torch.no_grad()
def draw(model: LanguageActionModel) -> None:
    """Draw weights where they are, in a fraction of the time that a processor takes: of matrices from a normal
    distribution, of norms 1, of biases 0.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=0.02)
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)


@dataclass(frozen=True)
class Turn:
    """What a side's turn gave: seconds of each step that counts, on the clock and of the process's cores; the loss of
    its first step's tokens; the most memory that it had on the device (bytes; 0 on a CPU).
    """

    seconds: list[float]
    core_seconds: list[float]
    first_loss: float
    peak: int


class Clock:
    """Marks the end of every step. A GPU is waited for where counting begins and ends, and left alone between."""

    def __init__(self, job: SupervisedJob) -> None:
        self.cuda = job.device == "cuda"
        self.waits = (job.warm_up, job.length)
        self.marks: list[float] = []
        self.core_marks: list[float] = []

    def mark(self) -> None:
        """A step has ended."""
        if self.cuda and len(self.marks) + 1 in self.waits:
            torch.cuda.synchronize()
        self.marks.append(time.perf_counter())
        self.core_marks.append(time.process_time())

    def turn(self, first_loss: float, peak: int) -> Turn:
        """What was measured, with what the clock does not know."""
        return Turn(self._between(self.marks), self._between(self.core_marks), first_loss, peak)

    def _between(self, marks: list[float]) -> list[float]:
        return [after - before for before, after in itertools.pairwise(marks[self.waits[0] - 1 :])]


class SupervisedSide(Protocol):
    """One of the sides."""

    def train(self, job: SupervisedJob, clock: Clock) -> float:
        """Train `job`, marking the end of each step; returns the loss of the first step's tokens."""
        ...


# Ours


class Watch(Callback):
    """Tells the clock of every step, and keeps the first one's loss."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.first_loss = 0.0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """A step has ended."""
        if not self.clock.marks:
            self.first_loss = outputs["loss"].item()
        self.clock.mark()


class OurSupervisedModule:
    """`SupervisedModule` with all that a run has around it but its data's reading.

    Args:
        callbacks: What else watches the steps.
    """

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        self.callbacks = callbacks

    def train(self, job: SupervisedJob, clock: Clock) -> float:
        """See `SupervisedSide`."""
        parallel, model = job.parallelism(), job.build()
        parallel.prepare(model, model.blocks())
        watch, tracking, never = Watch(clock), Tracking(), CheckpointPolicy(every=10**9)
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):
            store, phases = CheckpointStore(Path(folder), never.retention), phase_ledger(Path(folder), 1)
            trainer = Trainer(
                **parallel.trainer_arguments(),
                max_steps=job.length,
                max_epochs=-1,
                logger=tracking.loggers(NAME, Path(folder), 1, NAME),
                callbacks=[
                    PhaseRecorder(phases),
                    DataStall(Path(folder)),
                    *tracking.callbacks(NAME, 1, NAME),
                    Checkpointing(store, never, phases, None),
                    watch,
                    *self.callbacks,
                ],
                enable_checkpointing=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
                default_root_dir=folder,
            )
            trainer.fit(SupervisedModule(model, job.stage_range, parallel), datamodule=ReplayData(job.batches))
        return watch.first_loss


class PlainLoop:
    """The same model and loss in a loop that a page of PyTorch holds: what Lightning and the framework add to a step.

    It prepares and moves each step as ours does, and has neither checks of health, clocks, metrics nor checkpoints.
    """

    def train(self, job: SupervisedJob, clock: Clock) -> float:
        """See `SupervisedSide`."""
        parallel, model, stage_range = job.parallelism(), job.build(), job.stage_range
        parallel.prepare(model, model.blocks())
        stage = stage_range.stage
        assert isinstance(stage, SupervisedStage)
        optimizer = stage.optimizer(parameter_groups(model, stage.lr, stage.weight_decay, stage.lr_factors))
        schedule = make_schedule(stage_range, optimizer)
        first_loss = torch.zeros(())
        for index in range(job.length):
            step = prepare_step(model, job.batches[index % len(job.batches)], missing=0).to(torch.device(job.device))
            for micro in step.micro_batches:
                with parallel.as_trained():
                    loss = stage.objective(model(micro.batch, micro.sources), model.head, micro.targets)
                mean = loss.total / step.counts[0]
                mean.backward()
                first_loss = first_loss + mean.detach().cpu() if index == 0 else first_loss
            clip_gradients(model.parameters(), stage.clip)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            clock.mark()
        return float(first_loss)
