"""What a recipe will cost, before anything runs: parameters, tokens, FLOPs, hours and memory of each rank, on a CPU."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from framework.model.flops import PARTS, TrainingFlops
from framework.model.freeze import set_trainable
from framework.model.language_action import LanguageActionModel
from framework.parallel.communication import efficiency
from framework.parallel.mesh import DIMENSIONS
from framework.recipe.composition import Composition
from framework.recipe.instantiate import instantiate
from framework.recipe.problem import Origin, Problem, RecipeError
from framework.tracking.devices import DEVICES, Device, arithmetic, known
from framework.training.planner.batches import preview, sample_size
from framework.training.planner.memory import Job, MemoryPlan, memory_plan
from framework.training.stages import StageRange
from framework.training.tasks.train import Train

USED = 0.4
"""Share of the device's peak that the estimate of hours takes a run to reach."""


def plan(composition: Composition, job: Mapping[str, str] | None = None) -> str:
    """The plan of a training recipe, as text. `job` may say where it is to run: `nodes`, `gpus` (of a node) and
    `device`.

    Raises `TypeError` for a task that does not train, `RecipeError` for a job that there cannot be.
    """
    task = instantiate(composition)
    if not isinstance(task, Train):
        raise TypeError(f"task: {type(task).__name__} does not train: there is nothing to plan")
    try:
        place = read_job(job or {})
        task.parallel.mesh.sizes(place.world, place.per_node)
    except ValueError as error:
        raise RecipeError([Problem(Origin("command line"), "plan", str(error))]) from error
    model = _model(task)
    lines = [f"{'parameters':<26}{_count(model):>14,}", *_rooms(model)]
    for span in task.curriculum.stage_ranges():
        lines += ["", *_stage(task, span, place)]
    return "\n".join(lines)


def read_job(words: Mapping[str, str]) -> Job:
    """The job of `nodes`, `gpus` and `device` as the command line has them: by default one of what is here, or an H100.

    Raises `ValueError` that says what there is to give.
    """
    here = torch.cuda.get_device_name() if torch.cuda.is_available() else "H100"
    device = known(words.get("device", here))
    if device is None:
        names = ", ".join(each.name for each in DEVICES)
        raise ValueError(f"device={words.get('device', here)}: not in the table of devices; give one of {names}")
    numbers = {name: words.get(name, "1") for name in ("nodes", "gpus")}
    for name, number in numbers.items():
        if not number.isdecimal() or int(number) < 1:
            raise ValueError(f"{name}={number}: give a number from 1 on")
    return Job(int(numbers["nodes"]), int(numbers["gpus"]), device)


def _model(task: Train, span: StageRange | None = None) -> LanguageActionModel:
    with torch.device("meta"):
        model = task.model(special_tokens=task.data.special_tokens)
    if span is not None:
        set_trainable(model, span.stage.trainable)
    return model


def _count(module: nn.Module, trainable_only: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable_only)


def _rooms(model: LanguageActionModel) -> list[str]:
    parts: dict[str, nn.Module] = {
        "language model": model.backbone.model.language_model,
        "vision tower": model.backbone.model.visual,
        **{f"{name} encoder": encoder for name, encoder in model.encoders.items()},
    }
    return [f"  {name:<24}{_count(part):>14,}" for name, part in parts.items()]


def _stage(task: Train, span: StageRange, job: Job) -> list[str]:
    model = _model(task, span)
    trainable, total = _count(model, trainable_only=True), _count(model)
    pipeline, steps = span.stage.pipeline(task.data), span.end - span.start
    batch = pipeline.global_batch
    previewed = preview(pipeline, span.stage.mixture, span.stage.answers_per_prompt)
    size = sample_size(previewed)
    flops = TrainingFlops(model, task.parallel.recompute.shares())
    weights = sum(weight for weight, _ in previewed)
    found = [(weight / weights, flops.of_step([micro])) for weight, micro in previewed]
    per_step = {part: batch * sum(weight * each[part] for weight, each in found) for part in PARTS}
    memory = memory_plan(functools.partial(_model, task, span), span.stage, pipeline, task.parallel, size, job)
    return [
        f"stage {span.name}",
        f"  {'trainable':<24}{trainable:>14,}  ({trainable / total:.1%})",
        f"  {'steps':<24}{steps:>14,}",
        f"  {'samples':<24}{steps * batch:>14,}  ({batch} a step)",
        f"  {'tokens a sample':<24}{size.tokens:>14,.0f}  ({size.patches:,.0f} patches)",
        f"  {'of them trained':<24}{size.supervised:>14,.0f}",
        f"  {'tokens':<24}{steps * batch * size.tokens:>14,.0f}",
        *_work(per_step, steps, job.device, task.parallel.precision.name),
        *_memory(memory, job),
        *_traffic(memory, job, sum(per_step.values()), task.parallel.precision.name),
    ]


def _work(per_step: Mapping[str, float], steps: int, device: Device, precision: str) -> Iterator[str]:
    done = sum(per_step.values())
    model = done - per_step["recomputed"]
    shares = ", ".join(f"{per_step[part] / model:.0%} {part}" for part in PARTS if part != "recomputed")
    kind = arithmetic(precision)
    hours = steps * model / ((getattr(device, kind) or device.bf16) * 1e12 * USED) / 3600
    yield f"  {'FLOPs a step':<24}{model:>14.3e}  {shares}"
    yield f"  {'recomputed besides':<24}{per_step['recomputed'] / done:>14.0%}"
    yield f"  {'FLOPs':<24}{steps * model:>14.3e}"
    yield f"  {'device hours':<24}{hours:>14,.1f}  ({device.name}, {kind}, at {USED:.0%} of its peak)"


def _memory(memory: MemoryPlan, job: Job) -> Iterator[str]:
    replicate, shard, tensor = memory.sizes
    shape, room = memory.shape, job.device.memory_gib * 2**30
    where = f"{job.nodes} x {job.per_node} {job.device.name}"
    yield f"  mesh: replicate {replicate}, shard {shard}, tensor {tensor} on {where}"
    rounds = f"{memory.rounds} micro-batches" if memory.rounds > 1 else "1 micro-batch"
    yield f"  a rank's step: {rounds} of {shape.rows} x {shape.length:,} positions at most"
    yield "  a rank's memory:"
    held = {
        "weights": memory.state.parameters,
        "gradients": memory.state.gradients,
        "optimizer": memory.state.optimizer,
    }
    yield from (f"    {name:<36}{amount / 2**30:>10.3f} GiB" for name, amount in held.items())
    yield f"  most of it at once: {memory.moment}"
    yield from (f"    {name:<36}{amount / 2**30:>10.3f} GiB" for name, amount in memory.parts.items())
    fits = memory.peak <= room
    verdict = "fits" if fits else "DOES NOT FIT"
    yield f"  {'peak':<38}{memory.peak / 2**30:>10.3f} GiB of {job.device.memory_gib:.1f}: {verdict}"
    if not fits:
        yield from (f"    {advice}" for advice in memory.remedies())


def _traffic(memory: MemoryPlan, job: Job, flops: float, precision: str) -> Iterator[str]:
    """What a rank sends, and what that leaves of its time. Dimensions that stay inside of nodes go over their links."""
    if job.world == 1:
        return
    inner, rates = 1, {}
    for name, size in reversed(list(zip(DIMENSIONS, memory.sizes, strict=True))):
        inner *= size
        rates[name] = 1e9 * (job.device.link if inner <= job.per_node else job.device.network)
    yield "  a rank sends in a step:"
    for name in DIMENSIONS:
        yield f"    {name:<36}{memory.sent[name] / 2**30:>10.3f} GiB at {rates[name] / 1e9:,.4g} GB/s"
    peak = getattr(job.device, arithmetic(precision)) or job.device.bf16
    found = efficiency(memory.sent, rates, flops / job.world / (peak * 1e12 * USED), memory.units)
    hidden = f"{found.best:.0%} where sending hides behind arithmetic"
    yield f"  {'at work':<38}{found.worst:>10.0%} of a step's time, {hidden}"
