"""Stages of training and the curriculum that orders them, each a component of the recipe (contract 7)."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from annotated_types import Interval
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from framework.data.pipeline import DataPipeline
from framework.data.stream.mixture import Mixture
from framework.objective.supervised import CrossEntropy
from framework.recipe.component import component
from framework.recipe.ranges import Batch, LearningRate, PositiveCount, Share, Weight, WeightDecay


@dataclass(frozen=True, kw_only=True)
class Stage(ABC):
    """What every stage of training has, whatever its objective."""

    mixture: Mixture
    """The streams of samples and their weights."""
    optimizer: Callable[..., Optimizer]
    """Builds the optimizer, called with a list of parameter groups."""
    schedule: Callable[..., LRScheduler]
    """Builds the learning-rate schedule, called with the optimizer, `num_warmup_steps` and `num_training_steps`."""
    steps: PositiveCount
    """Optimizer steps of the stage, at least 1."""
    lr: LearningRate
    """Peak learning rate."""
    weight_decay: WeightDecay = 0.1
    """Weight decay of matrices. Vectors and embeddings do not decay."""
    warmup_share: Share = 0.03
    """Share of the steps in which the learning rate rises from 0 to `lr`."""
    clip: Annotated[float, Interval(ge=1e-9, le=1e9)] = 1.0
    """Norm to which gradients are clipped."""
    trainable: Sequence[str] = ("*",)
    """Shell patterns of the names of parameters that train. They apply in order; one with a leading `!` freezes."""
    lr_factors: Mapping[str, Weight] = field(default_factory=dict)
    """Factors of `lr` by shell pattern of parameter names; of several that match, the last counts."""
    global_batch: Batch | None = None
    """Samples of an optimizer step over all ranks; None for the data's `global_batch`."""
    micro_batch: Batch | None = None
    """Samples of a micro-batch; None for the data's `micro_batch`."""

    def pipeline(self, data: DataPipeline) -> DataPipeline:
        """The recipe's data pipeline with this stage's batch sizes."""
        return replace(
            data,
            global_batch=data.global_batch if self.global_batch is None else self.global_batch,
            micro_batch=data.micro_batch if self.micro_batch is None else self.micro_batch,
        )

    @property
    def answers_per_prompt(self) -> int:
        """Number of answers that train for each prompt."""
        return 1

    @abstractmethod
    def traced_loss(self) -> CrossEntropy:
        """The loss of the pass that the memory planner traces."""

    def batch_bytes(self, step: float, micro_batch: float, scored: int, vocabulary: int) -> int:
        """Bytes of batch tensors that a device holds at once, for the memory planner.

        `step` and `micro_batch` are the bytes of all tensors of a step and of one micro-batch; `scored` is the number
        of positions that predict one of `vocabulary` tokens. Here the device holds the whole step.
        """
        return round(step)


@component
@dataclass(frozen=True, kw_only=True)
class SupervisedStage(Stage):
    """A stage of supervised fine-tuning on the answers in the data."""

    objective: CrossEntropy
    """The loss of the answers' tokens."""

    def traced_loss(self) -> CrossEntropy:
        """The objective itself."""
        return self.objective


@dataclass(frozen=True, slots=True)
class StageRange:
    """A stage and the optimizer steps that it covers, counted over the whole curriculum."""

    name: str
    """The stage's name in the curriculum."""
    stage: Stage
    """The stage."""
    start: int
    """Steps trained before the stage."""
    end: int
    """Steps trained when the stage ends."""


@component
class Curriculum:
    """Stages, trained in order. Raises `ValueError` for an empty curriculum, and for a stage without steps or samples.

    Args:
        stages: The stages by name.
        max_steps_per_stage: Upper limit of each stage's steps; None for no limit. `scale=tiny` shortens any recipe
            with it.
    """

    def __init__(self, stages: Mapping[str, Stage], max_steps_per_stage: PositiveCount | None = None) -> None:
        if not stages:
            raise ValueError("curriculum.stages: empty; give the recipe a stage (override /stage: sft) or list recipes")
        for name, stage in stages.items():
            if stage.steps < 1:
                raise ValueError(f"curriculum.stages.{name}.steps: {stage.steps}; give at least 1")
            for key, size in (("global_batch", stage.global_batch), ("micro_batch", stage.micro_batch)):
                if size is not None and size < 1:
                    raise ValueError(f"curriculum.stages.{name}.{key}: {size}; give at least 1, or null for the data's")
        self.stages = dict(stages)
        self.max_steps_per_stage = max_steps_per_stage

    def stage_ranges(self) -> Iterator[StageRange]:
        """Yields the stages with the steps that they cover."""
        start = 0
        for name, stage in self.stages.items():
            steps = stage.steps if self.max_steps_per_stage is None else min(stage.steps, self.max_steps_per_stage)
            yield StageRange(name, stage, start, start + steps)
            start += steps


def make_schedule(stage_range: StageRange, optimizer: Optimizer) -> LRScheduler:
    """The learning-rate schedule over the stage's own steps.

    Lightning's estimate of the number of steps is not used: it would build the loader before its state is restored.
    """
    steps = stage_range.end - stage_range.start
    arguments: dict[str, Any] = {
        "num_warmup_steps": round(stage_range.stage.warmup_share * steps),
        "num_training_steps": steps,
    }
    return stage_range.stage.schedule(optimizer, **arguments)


def resume_schedule(schedule: LRScheduler, saved: Mapping[str, Any]) -> None:
    """Advance a fresh schedule to the position of a `saved` one (its `state_dict`), and set the learning rates there.

    Rates, warm-up and length stay those of the recipe, which may have changed since.
    """
    steps = int(saved["last_epoch"])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")  # the optimizer has stepped
        if isinstance(schedule, LambdaLR):  # a function of the position alone
            schedule.last_epoch, steps = steps - 1, 1
        for _ in range(steps):
            schedule.step()


def stage_to_resume(ranges: Sequence[StageRange], name: str, step: int, start: int | None = None) -> StageRange:
    """The stage in which a checkpoint of `step` goes on, which was saved in stage `name`.

    Args:
        ranges: The stages as the recipe has them now.
        name: The checkpoint's stage.
        step: The checkpoint's step.
        start: The steps before its stage at that time; None where the checkpoint does not say.

    Raises `ValueError` where the step belongs to another stage now: a stage goes on only from a checkpoint of its own.
    """
    own = next((each for each in ranges if each.name == name), None)
    if own is not None and own.start < step <= own.end and start in (None, own.start):
        return own
    now = next((f"stage {each.name}" for each in ranges if each.start < step <= each.end), "no stage")
    if own is not None and now == f"stage {name}":
        now = f"another part of stage {name}"
    raise ValueError(
        f"curriculum.stages: the newest checkpoint, of step {step}, is of stage {name}; by the recipe that step "
        f"belongs to {now}. Keep the order of the stages up to {name} and the lengths of those before it, or start a "
        "new run from its weights (run.name=NEW init_from=RUN)"
    )
