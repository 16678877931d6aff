"""The plan of one stage: what its steps compute, how long they take, and what a rank holds."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from framework.model.flops import PARTS, TrainingFlops
from framework.model.freeze import set_trainable
from framework.model.language_action import LanguageActionModel
from framework.recipe.composition import Composition
from framework.recipe.instantiate import instantiate
from framework.recipe.problem import Origin, Problem, RecipeError
from framework.tracking.devices import DEVICES, arithmetic, find_device
from framework.training.planner.batches import SampleStatistics, draw_samples, sample_statistics
from framework.training.planner.memory import Hardware, MemoryPlan, memory_plan
from framework.training.stages import StageRange
from framework.training.tasks.train import Train

UTILISATION = 0.4
"""Share of the device's peak FLOP/s that the estimate of hours assumes."""


@dataclass(frozen=True)
class StagePlan:
    """What a stage costs on `hardware`."""

    name: str
    """The stage."""
    steps: int
    """Optimizer steps."""
    global_batch: int
    """Samples of a step."""
    parameters: int
    """Parameters of the model."""
    trainable: int
    """Those that the stage trains."""
    statistics: SampleStatistics
    """Tokens and sensor rows of a sample."""
    flops: Mapping[str, float]
    """FLOPs of a step by part of the work (`framework.model.flops.PARTS`)."""
    memory: MemoryPlan
    """What a rank holds and sends."""
    hardware: Hardware
    """Where it runs."""
    precision: str
    """The precision's name."""

    @property
    def tokens_per_step(self) -> float:
        """Tokens of a step over all ranks."""
        return self.global_batch * self.statistics.tokens

    @property
    def model_flops(self) -> float:
        """FLOPs of a step, without those that are computed a second time."""
        return sum(self.flops.values()) - self.flops["recomputed"]

    @property
    def device_hours(self) -> float:
        """Hours of one device at `UTILISATION` of its peak."""
        device = self.hardware.device
        peak = (getattr(device, arithmetic(self.precision)) or device.bf16) * 1e12
        return self.steps * self.model_flops / (peak * UTILISATION) / 3600

    @property
    def peak_gib(self) -> float:
        """Peak memory of a rank (GiB)."""
        return self.memory.peak / 2**30


def planned_task(composition: Composition) -> Train:
    """The task that is planned. Raises `TypeError` for a task that does not train."""
    task = instantiate(composition)
    if not isinstance(task, Train):
        raise TypeError(f"task: {type(task).__name__} does not train: there is nothing to plan")
    return task


def stage_plans(task: Train, hardware: Hardware) -> list[StagePlan]:
    """The plan of each stage. Raises `RecipeError` for hardware that the mesh does not fit."""
    try:
        task.parallel.mesh.sizes(hardware.world, hardware.per_node)
    except ValueError as error:
        raise RecipeError([Problem(Origin("command line"), "plan", str(error))]) from error
    return [stage_plan(task, stage_range, hardware) for stage_range in task.curriculum.stage_ranges()]


def stage_plan(task: Train, stage_range: StageRange, hardware: Hardware) -> StagePlan:
    """The plan of the steps of `stage_range`, from samples that its mixture gives."""
    stage, model = stage_range.stage, meta_model(task, stage_range)
    pipeline = stage.pipeline(task.data)
    samples = draw_samples(pipeline, stage.mixture, stage.answers_per_prompt)
    statistics = sample_statistics(samples)
    flops = TrainingFlops(model, task.parallel.recompute.shares())
    weights = sum(weight for weight, _ in samples)
    of_samples = [(weight / weights, flops.of_step([micro])) for weight, micro in samples]
    build = functools.partial(meta_model, task, stage_range)
    return StagePlan(
        name=stage_range.name,
        steps=stage_range.end - stage_range.start,
        global_batch=pipeline.global_batch,
        parameters=count(model),
        trainable=count(model, trainable_only=True),
        statistics=statistics,
        flops={part: pipeline.global_batch * sum(w * each[part] for w, each in of_samples) for part in PARTS},
        memory=memory_plan(build, stage, pipeline, task.parallel, statistics, hardware),
        hardware=hardware,
        precision=task.parallel.precision.name,
    )


def meta_model(task: Train, stage_range: StageRange | None = None) -> LanguageActionModel:
    """The task's model on the meta device, with what a stage trains."""
    with torch.device("meta"):
        model = task.model(special_tokens=task.data.special_tokens)
    if stage_range is not None:
        set_trainable(model, stage_range.stage.trainable)
    return model


def count(module: nn.Module, trainable_only: bool = False) -> int:
    """Parameters of `module`."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable_only)


def read_hardware(words: Mapping[str, str]) -> Hardware:
    """The hardware that the command line's `nodes`, `gpus` and `device` name; by default one local GPU, else one H100.

    Raises `ValueError` that lists the valid values.
    """
    default = torch.cuda.get_device_name() if torch.cuda.is_available() else "H100"
    device = find_device(words.get("device", default))
    if device is None:
        names = ", ".join(each.name for each in DEVICES)
        raise ValueError(f"device={words.get('device', default)}: not in the table of devices; give one of {names}")
    numbers = {name: words.get(name, "1") for name in ("nodes", "gpus")}
    for name, number in numbers.items():
        if not number.isdecimal() or int(number) < 1:
            raise ValueError(f"{name}={number}: give a number from 1 on")
    return Hardware(int(numbers["nodes"]), int(numbers["gpus"]), device)
