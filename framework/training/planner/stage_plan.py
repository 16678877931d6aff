"""The plan of one stage: what its steps compute, how long they take, and what a rank holds."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from framework.data.pipeline import DataPipeline
from framework.model.flops import PARTS, TrainingFlops, batch_flops, count_encoders
from framework.model.freeze import set_trainable
from framework.model.language_action import LanguageActionModel
from framework.model.quantized_base import count_weights
from framework.parallel.parallelism import Parallelism
from framework.recipe.composition import Composition
from framework.recipe.instantiate import instantiate
from framework.recipe.problem import Origin, Problem, RecipeError
from framework.scene.types import SceneError
from framework.tracking.devices import DEVICES, arithmetic, find_device
from framework.training.planner.batches import SampleStatistics, count_samples, sample_statistics
from framework.training.planner.memory import Hardware, MemoryPlan, memory_plan
from framework.training.planner.processes import in_processes
from framework.training.planner.trace import Traced
from framework.training.stages import Curriculum, StageRange

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
    answers: int
    """Answers that the stage samples to each prompt; 1: it samples none."""
    sampling_flops: float
    """FLOPs of sampling the answers of a step, each prompt read once, at least: groups that a filter drops add to them.
    """
    flops: Mapping[str, float]
    """FLOPs of training a step, by part of the work (`framework.model.flops.PARTS`)."""
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


@dataclass(frozen=True)
class PlannedTask:
    """What a plan needs of a task that trains. The rest of it, which takes seconds to import, is not constructed."""

    model: Callable[..., LanguageActionModel]
    """See `framework.training.tasks.train.Train`, as for the others."""
    data: DataPipeline
    """Renders and batches samples."""
    curriculum: Curriculum
    """The stages, in order."""
    parallel: Parallelism
    """Devices, mesh, precision and recomputation."""


def planned_task(composition: Composition) -> PlannedTask:
    """The task that is planned. Raises `TypeError` for a task that does not train."""
    names = [field.name for field in fields(PlannedTask)]
    task = composition.tree["task"]
    if missing := [name for name in names if name not in task]:
        raise TypeError(f"task: {task['_target_']} has no {missing[0]}: it does not train, there is nothing to plan")
    return PlannedTask(**{name: instantiate(composition, ("task", name)) for name in names})


def stage_plans(task: PlannedTask, hardware: Hardware, model: LanguageActionModel | None = None) -> list[StagePlan]:
    """The plan of each stage, counted with the task's `model` on the meta device (None: it is built).

    Stages are planned at once where the machine has several CPUs. Raises `RecipeError` for hardware that the mesh does
    not fit, and for a stage whose samples cannot be counted.
    """
    try:
        task.parallel.mesh.sizes(hardware.world, hardware.per_node)
    except ValueError as error:
        raise RecipeError([Problem(Origin("command line"), "plan", str(error))]) from error
    model, build = model or meta_model(task), functools.partial(meta_model, task)
    count_encoders(model.encoders)
    plan = functools.partial(stage_plan, task, hardware, model, model.offline_processor())

    def in_a_process(ranges: Sequence[StageRange]) -> list[StagePlan]:
        traced = Traced()
        return [*(plan(each, traced, build) for each in ranges[:-1]), plan(ranges[-1], traced, lambda: model)]

    ranges, traced = list(task.curriculum.stage_ranges()), Traced()
    planned = in_processes(in_a_process, ranges)
    return [done or plan(each, traced, build) for done, each in zip(planned, ranges, strict=True)]


def stage_plan(
    task: PlannedTask,
    hardware: Hardware,
    model: LanguageActionModel,
    processor: Any,
    stage_range: StageRange,
    traced: Traced,
    build: Callable[[], LanguageActionModel],
) -> StagePlan:
    """The plan of the steps of `stage_range`, from samples that its mixture gives.

    `model` is the task's on the meta device, with its offline `processor`; `traced` holds what the plans of other
    stages have traced. `build` makes the model whose memory is traced, which changes it: `model` again where nothing
    else needs that.
    """
    stage = stage_range.stage
    set_trainable(model, stage.trainable)
    pipeline, steps, answers = stage.pipeline(task.data), stage_range.end - stage_range.start, stage.answers_per_prompt
    try:
        samples, refused = count_samples(pipeline, stage.mixture, processor, steps, answers)
    except SceneError as error:
        key = f"curriculum.stages.{stage_range.name}.mixture"
        raise RecipeError([Problem(Origin("plan"), key, str(error))]) from error
    statistics = sample_statistics(samples, refused)
    flops = TrainingFlops(model, task.parallel.recompute.shares())
    weights = sum(sample.weight for sample in samples)
    of_samples = [(weight / weights, flops.of_step([micro])) for weight, micro in samples]
    sampling = 0.0
    if answers > 1:
        config, rows = model.backbone.config, model.vocabulary
        sampling = sum(weight / weights * batch_flops(config, micro, rows).total for weight, micro in samples)
    parameters, trainable = count_weights(model), count_weights(model, trainable_only=True)
    changed = build()
    set_trainable(changed, stage.trainable)
    return StagePlan(
        name=stage_range.name,
        steps=steps,
        global_batch=pipeline.global_batch,
        parameters=parameters,
        trainable=trainable,
        statistics=statistics,
        answers=answers,
        sampling_flops=pipeline.global_batch * sampling,
        flops={part: pipeline.global_batch * sum(w * each[part] for w, each in of_samples) for part in PARTS},
        memory=memory_plan(changed, stage, pipeline, task.parallel, statistics, hardware, traced),
        hardware=hardware,
        precision=task.parallel.precision.name,
    )


def meta_model(task: PlannedTask) -> LanguageActionModel:
    """The task's model on the meta device."""
    with torch.device("meta"):
        return task.model(special_tokens=task.data.special_tokens)


def active_parameters(model: LanguageActionModel) -> int:
    """Parameters that compute for a token: all but those of the experts that its routers do not choose."""
    total, text = count_weights(model), model.backbone.config.text_config
    if not model.family.experts:
        return total
    experts = sum(p.numel() for name, p in model.named_parameters() if ".mlp.experts." in name)
    return total - experts + experts * text.num_experts_per_tok // text.num_experts


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
