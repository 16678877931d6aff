"""Cost of a recipe before it runs: parameters, tokens, FLOPs, device hours and memory per rank, computed on a CPU."""

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
from framework.training.planner.batches import draw_samples, sample_statistics
from framework.training.planner.memory import Hardware, MemoryPlan, memory_plan
from framework.training.stages import StageRange
from framework.training.tasks.train import Train

UTILISATION = 0.4
"""Share of the device's peak FLOP/s that the estimate of hours assumes."""


def plan(composition: Composition, job: Mapping[str, str] | None = None) -> str:
    """The plan of a training recipe, as text. `job` may name the hardware: `nodes`, `gpus` (per node) and `device`.

    Raises `TypeError` for a task that does not train, and `RecipeError` for hardware that the mesh does not fit.
    """
    task = instantiate(composition)
    if not isinstance(task, Train):
        raise TypeError(f"task: {type(task).__name__} does not train: there is nothing to plan")
    try:
        hardware = read_hardware(job or {})
        task.parallel.mesh.sizes(hardware.world, hardware.per_node)
    except ValueError as error:
        raise RecipeError([Problem(Origin("command line"), "plan", str(error))]) from error
    model = _model(task)
    lines = [f"{'parameters':<26}{_count(model):>14,}", *_parts(model)]
    for stage_range in task.curriculum.stage_ranges():
        lines += ["", *_stage(task, stage_range, hardware)]
    return "\n".join(lines)


def read_hardware(words: Mapping[str, str]) -> Hardware:
    """The hardware that the command line's `nodes`, `gpus` and `device` name; by default one local GPU, else one H100.

    Raises `ValueError` that lists the valid values.
    """
    default = torch.cuda.get_device_name() if torch.cuda.is_available() else "H100"
    device = known(words.get("device", default))
    if device is None:
        names = ", ".join(each.name for each in DEVICES)
        raise ValueError(f"device={words.get('device', default)}: not in the table of devices; give one of {names}")
    numbers = {name: words.get(name, "1") for name in ("nodes", "gpus")}
    for name, number in numbers.items():
        if not number.isdecimal() or int(number) < 1:
            raise ValueError(f"{name}={number}: give a number from 1 on")
    return Hardware(int(numbers["nodes"]), int(numbers["gpus"]), device)


def _model(task: Train, stage_range: StageRange | None = None) -> LanguageActionModel:
    with torch.device("meta"):
        model = task.model(special_tokens=task.data.special_tokens)
    if stage_range is not None:
        set_trainable(model, stage_range.stage.trainable)
    return model


def _count(module: nn.Module, trainable_only: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable_only)


def _parts(model: LanguageActionModel) -> list[str]:
    parts: dict[str, nn.Module] = {
        "language model": model.backbone.model.language_model,
        "vision tower": model.backbone.model.visual,
        **{f"{name} encoder": encoder for name, encoder in model.encoders.items()},
    }
    return [f"  {name:<24}{_count(part):>14,}" for name, part in parts.items()]


def _stage(task: Train, stage_range: StageRange, hardware: Hardware) -> list[str]:
    model = _model(task, stage_range)
    trainable, total = _count(model, trainable_only=True), _count(model)
    stage = stage_range.stage
    pipeline, steps = stage.pipeline(task.data), stage_range.end - stage_range.start
    batch = pipeline.global_batch
    samples = draw_samples(pipeline, stage.mixture, stage.answers_per_prompt)
    statistics = sample_statistics(samples)
    flops = TrainingFlops(model, task.parallel.recompute.shares())
    weights = sum(weight for weight, _ in samples)
    flops_of_samples = [(weight / weights, flops.of_step([micro])) for weight, micro in samples]
    per_step = {part: batch * sum(weight * each[part] for weight, each in flops_of_samples) for part in PARTS}
    memory = memory_plan(
        functools.partial(_model, task, stage_range), stage, pipeline, task.parallel, statistics, hardware
    )
    return [
        f"stage {stage_range.name}",
        f"  {'trainable':<24}{trainable:>14,}  ({trainable / total:.1%})",
        f"  {'steps':<24}{steps:>14,}",
        f"  {'samples':<24}{steps * batch:>14,}  ({batch} a step)",
        f"  {'tokens a sample':<24}{statistics.tokens:>14,.0f}  ({statistics.patches:,.0f} patches)",
        f"  {'of them supervised':<24}{statistics.supervised:>14,.0f}",
        f"  {'tokens':<24}{steps * batch * statistics.tokens:>14,.0f}",
        *_work(per_step, steps, hardware.device, task.parallel.precision.name),
        *_memory(memory, hardware),
        *_traffic(memory, hardware, sum(per_step.values()), task.parallel.precision.name),
    ]


def _work(per_step: Mapping[str, float], steps: int, device: Device, precision: str) -> Iterator[str]:
    total = sum(per_step.values())
    model = total - per_step["recomputed"]
    shares = ", ".join(f"{per_step[part] / model:.0%} {part}" for part in PARTS if part != "recomputed")
    kind = arithmetic(precision)
    hours = steps * model / ((getattr(device, kind) or device.bf16) * 1e12 * UTILISATION) / 3600
    yield f"  {'FLOPs a step':<24}{model:>14.3e}  {shares}"
    yield f"  {'recomputed in addition':<24}{per_step['recomputed'] / total:>14.0%}"
    yield f"  {'FLOPs':<24}{steps * model:>14.3e}"
    yield f"  {'device hours':<24}{hours:>14,.1f}  ({device.name}, {kind}, at {UTILISATION:.0%} of its peak)"


def _memory(memory: MemoryPlan, hardware: Hardware) -> Iterator[str]:
    replicate, shard, tensor = memory.sizes
    shape, available = memory.shape, hardware.device.memory_gib * 2**30
    where = f"{hardware.nodes} x {hardware.per_node} {hardware.device.name}"
    yield f"  mesh: replicate {replicate}, shard {shard}, tensor {tensor} on {where}"
    micro_batches = f"{memory.micro_batches} micro-batches" if memory.micro_batches > 1 else "1 micro-batch"
    yield f"  a rank's step: {micro_batches} of {shape.rows} x {shape.length:,} positions at most"
    yield "  a rank's memory:"
    state = {
        "weights": memory.state.parameters,
        "gradients": memory.state.gradients,
        "optimizer": memory.state.optimizer,
    }
    yield from (f"    {name:<36}{amount / 2**30:>10.3f} GiB" for name, amount in state.items())
    yield f"  at the peak ({memory.moment}):"
    yield from (f"    {name:<36}{amount / 2**30:>10.3f} GiB" for name, amount in memory.parts.items())
    fits = memory.peak <= available
    verdict = "fits" if fits else "DOES NOT FIT"
    yield f"  {'peak':<38}{memory.peak / 2**30:>10.3f} GiB of {hardware.device.memory_gib:.1f}: {verdict}"
    if not fits:
        yield from (f"    {advice}" for advice in memory.remedies())


def _traffic(memory: MemoryPlan, hardware: Hardware, flops: float, precision: str) -> Iterator[str]:
    """What a rank sends, and the share of time left for computing. Dimensions within a node use its own links."""
    if hardware.world == 1:
        return
    inner, rates = 1, {}
    for name, size in reversed(list(zip(DIMENSIONS, memory.sizes, strict=True))):
        inner *= size
        rates[name] = 1e9 * (hardware.device.link if inner <= hardware.per_node else hardware.device.network)
    yield "  a rank sends in a step:"
    for name in DIMENSIONS:
        yield f"    {name:<36}{memory.sent[name] / 2**30:>10.3f} GiB at {rates[name] / 1e9:,.4g} GB/s"
    peak = getattr(hardware.device, arithmetic(precision)) or hardware.device.bf16
    estimate = efficiency(memory.sent, rates, flops / hardware.world / (peak * 1e12 * UTILISATION), memory.units)
    hidden = f"{estimate.best:.0%} where sending overlaps with computing"
    yield f"  {'computing':<38}{estimate.worst:>10.0%} of a step's time, {hidden}"
