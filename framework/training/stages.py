"""A curriculum: stages in order, each a component of its own (contract 7)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from framework.data.pipeline import DataPipeline
from framework.data.stream.mixture import Mixture
from framework.objective.supervised import CrossEntropy


@dataclass(frozen=True, kw_only=True)
class Stage(ABC):
    """What every stage of training has, whatever its objective.

    `optimizer` is called with parameter groups, `schedule` with the optimizer, `num_warmup_steps` (`warmup_share` of
    the length) and `num_training_steps`. `trainable` are name patterns; `lr_factors` maps name patterns to factors of
    `lr`. Gradients are clipped to norm `clip`. A step has `global_batch` samples, `micro_batch` rows at a time (None:
    as many as the data's has).
    """

    mixture: Mixture
    optimizer: Callable[..., Optimizer]
    schedule: Callable[..., LRScheduler]
    steps: int
    lr: float
    weight_decay: float = 0.1
    warmup_share: float = 0.03
    clip: float = 1.0
    trainable: Sequence[str] = ("*",)
    lr_factors: Mapping[str, float] = field(default_factory=dict)
    global_batch: int | None = None
    micro_batch: int | None = None

    def pipeline(self, data: DataPipeline) -> DataPipeline:
        """The recipe's `data` with the stage's own batch."""
        return replace(
            data,
            global_batch=data.global_batch if self.global_batch is None else self.global_batch,
            micro_batch=data.micro_batch if self.micro_batch is None else self.micro_batch,
        )

    @property
    def answers_per_prompt(self) -> int:
        """How many answers to a prompt are trained."""
        return 1

    @abstractmethod
    def traced_loss(self) -> CrossEntropy:
        """The loss with which a pass over a micro-batch is rehearsed when its memory is planned."""

    def batch_bytes(self, step: float, micro_batch: float, scored: int, vocabulary: int) -> int:
        """Bytes of a batch that a device holds at once, of the `step`'s tensors and those of one `micro_batch`, of
        which `scored` positions predict one of `vocabulary` tokens: all of the step's.
        """
        return round(step)


@dataclass(frozen=True, kw_only=True)
class SupervisedStage(Stage):
    """A stage that learns the answers it is shown, by `objective`; for the others see `Stage`."""

    objective: CrossEntropy

    def traced_loss(self) -> CrossEntropy:
        """The objective itself."""
        return self.objective


@dataclass(frozen=True, slots=True)
class StageRange:
    """Stage `name` from optimizer step `start` to `end`, counted over the whole curriculum."""

    name: str
    stage: Stage
    start: int
    end: int


class Curriculum:
    """Stages by name, trained in order. With `max_steps_per_stage`, none is longer: how `scale=tiny` shortens any
    recipe.
    """

    def __init__(self, stages: Mapping[str, Stage], max_steps_per_stage: int | None = None) -> None:
        if not stages:
            raise ValueError("curriculum.stages: empty; name at least one stage")
        for name, stage in stages.items():
            if stage.steps < 1:
                raise ValueError(f"curriculum.stages.{name}.steps: {stage.steps}; give at least 1")
            for key, size in (("global_batch", stage.global_batch), ("micro_batch", stage.micro_batch)):
                if size is not None and size < 1:
                    raise ValueError(f"curriculum.stages.{name}.{key}: {size}; give at least 1, or null for the data's")
        self.stages = dict(stages)
        self.max_steps_per_stage = max_steps_per_stage

    def stage_ranges(self) -> Iterator[StageRange]:
        """The stages with the steps at which they begin and end."""
        start = 0
        for name, stage in self.stages.items():
            steps = stage.steps if self.max_steps_per_stage is None else min(stage.steps, self.max_steps_per_stage)
            yield StageRange(name, stage, start, start + steps)
            start += steps


def make_schedule(span: StageRange, optimizer: Optimizer) -> LRScheduler:
    """The schedule of a stage over its own steps, not Lightning's estimate, which would build the loader before its
    state arrives.
    """
    steps = span.end - span.start
    arguments: dict[str, Any] = {
        "num_warmup_steps": round(span.stage.warmup_share * steps),
        "num_training_steps": steps,
    }
    return span.stage.schedule(optimizer, **arguments)
