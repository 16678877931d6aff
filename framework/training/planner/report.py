"""The cost of a recipe before it runs, as text: parameters, tokens, FLOPs, device hours and memory per rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from framework.model.flops import PARTS
from framework.model.language_action import LanguageActionModel
from framework.model.quantized_base import count_weights
from framework.parallel.communication import efficiency
from framework.parallel.mesh import DIMENSIONS
from framework.recipe.composition import Composition
from framework.recipe.problem import Origin, Problem, RecipeError
from framework.tracking.devices import arithmetic
from framework.training.planner.memory import Hardware, MemoryPlan
from framework.training.planner.stage_plan import (
    UTILISATION,
    StagePlan,
    active_parameters,
    meta_model,
    planned_task,
    read_hardware,
    stage_plans,
)


def plan(composition: Composition, job: Mapping[str, str] | None = None) -> str:
    """The plan of a training recipe. `job` may name the hardware: `nodes`, `gpus` (per node) and `device`.

    Raises `TypeError` for a task that does not train, and `RecipeError` for hardware that there is not or that the mesh
    does not fit.
    """
    task = planned_task(composition)
    try:
        hardware = read_hardware(job or {})
    except ValueError as error:
        raise RecipeError([Problem(Origin("command line"), "plan", str(error))]) from error
    model = meta_model(task)
    lines = [f"{'parameters':<26}{count_weights(model):>14,}", *_parts(model)]
    for stage in stage_plans(task, hardware, model):
        lines += ["", *_stage(stage)]
    return "\n".join(lines)


def _parts(model: LanguageActionModel) -> list[str]:
    parts: dict[str, nn.Module] = {
        "language model": model.backbone.model.language_model,
        "vision tower": model.backbone.model.visual,
        **{f"{name} encoder": encoder for name, encoder in model.encoders.items()},
    }
    lines = [f"  {name:<24}{count_weights(part):>14,}" for name, part in parts.items()]
    if model.family.experts:
        text = model.backbone.config.text_config
        lines.append(
            f"  {'active for a token':<24}{active_parameters(model):>14,}  ({text.num_experts_per_tok} of "
            f"{text.num_experts} experts a layer)"
        )
    return lines


def _stage(stage: StagePlan) -> Iterator[str]:
    statistics, samples = stage.statistics, stage.steps * stage.global_batch
    yield f"stage {stage.name}"
    yield f"  {'trainable':<24}{stage.trainable:>14,}  ({stage.trainable / stage.parameters:.1%})"
    yield f"  {'steps':<24}{stage.steps:>14,}"
    yield f"  {'samples':<24}{samples:>14,}  ({stage.global_batch} a step)"
    yield f"  {'tokens a sample':<24}{statistics.tokens:>14,.0f}  ({statistics.patches:,.0f} patches)"
    yield f"  {'of them supervised':<24}{statistics.supervised:>14,.0f}"
    if statistics.refused:
        refused = f"{statistics.refused:.1%}"
        yield f"  {'samples refused':<24}{refused:>14}  (longer than data.max_length; they are quarantined)"
    yield f"  {'tokens a step':<24}{stage.tokens_per_step:>14,.0f}"
    yield f"  {'tokens':<24}{samples * statistics.tokens:>14,.0f}"
    yield from _work(stage)
    yield from _memory(stage.memory, stage.hardware)
    yield from _traffic(stage.memory, stage.hardware, sum(stage.flops.values()), stage.precision)


def _work(stage: StagePlan) -> Iterator[str]:
    total, model = sum(stage.flops.values()), stage.model_flops
    if stage.answers > 1:
        sampled = f"{stage.global_batch} prompts x {stage.answers} answers"
        tokens = stage.global_batch * stage.statistics.supervised
        yield f"  {'tokens sampled a step':<24}{tokens:>14,.0f}  (at least: {sampled})"
        yield f"  {'FLOPs to sample them':<24}{stage.sampling_flops:>14.3e}  (not in the device hours)"
    shares = ", ".join(f"{stage.flops[part] / model:.0%} {part}" for part in PARTS if part != "recomputed")
    yield f"  {'FLOPs a step':<24}{model:>14.3e}  {shares}"
    yield f"  {'recomputed in addition':<24}{stage.flops['recomputed'] / total:>14.0%}"
    yield f"  {'FLOPs':<24}{stage.steps * model:>14.3e}"
    where = f"{stage.hardware.device.name}, {arithmetic(stage.precision)}, at {UTILISATION:.0%} of its peak"
    yield f"  {'device hours':<24}{stage.device_hours:>14,.1f}  ({where})"


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
