"""What a recipe will cost, before anything runs: parameters, tokens, FLOPs, memory and steps, on a CPU in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from framework.data.feed import Feed
from framework.data.loader import Sample, collate_for
from framework.data.mixture import Mixture
from framework.model.assembly import LanguageActionModel
from framework.model.backbone import RandomBackbone
from framework.model.flops import ForwardFlops, forward_flops
from framework.model.freeze import set_trainable
from framework.objective.supervised import supervised_tokens
from framework.recipe.compose import Composition
from framework.recipe.instantiate import instantiate
from framework.training.curriculum import Span
from framework.training.train import Train

PREVIEWED = 6
"""Scenes of a stage's first stream from which lengths are estimated."""


@dataclass(frozen=True, slots=True)
class SampleSize:
    """Means over previewed samples: positions, image patches, supervised positions."""

    tokens: float
    patches: float
    supervised: float


def plan(composition: Composition) -> str:
    """The plan of a training recipe, as text. Raises `TypeError` for a task that does not train."""
    task = instantiate(composition)
    if not isinstance(task, Train):
        raise TypeError(f"task: {type(task).__name__} does not train: there is nothing to plan")
    with torch.device("meta"):
        model = task.model(special_tokens=task.data.special_tokens)
    lines = [f"{'parameters':<22}{_count(model):>14,}", *_rooms(model)]
    for span in task.curriculum.spans():
        lines += ["", *_stage(task, model, span)]
    return "\n".join(lines)


def _count(module: nn.Module, trainable_only: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable_only)


def _rooms(model: LanguageActionModel) -> list[str]:
    parts: dict[str, nn.Module] = {
        "language model": model.backbone.model.language_model,
        "vision tower": model.backbone.model.visual,
        **{f"{name} encoder": encoder for name, encoder in model.encoders.items()},
    }
    return [f"  {name:<20}{_count(part):>14,}" for name, part in parts.items()]


def _stage(task: Train, model: LanguageActionModel, span: Span) -> list[str]:
    set_trainable(model, span.stage.trainable)
    trainable, total = _count(model, trainable_only=True), _count(model)
    steps, batch = span.end - span.start, task.data.global_batch
    size = measure(task.data, span.stage.mixture)
    config = model.backbone.config
    forward = forward_flops(config, size.tokens, size.patches, size.supervised, model.vocabulary)
    recomputed = forward.blocks if task.placement.activation_checkpointing else 0.0
    per_step = batch * (3 * forward.total + recomputed)
    memory = _memory(trainable, total, task, size, config.text_config)
    return [
        f"stage {span.name}",
        f"  {'trainable':<26}{trainable:>14,}  ({trainable / total:.1%})",
        f"  {'steps':<26}{steps:>14,}",
        f"  {'samples':<26}{steps * batch:>14,}  ({batch} a step)",
        f"  {'tokens a sample':<26}{size.tokens:>14,.0f}  ({size.patches:,.0f} patches)",
        f"  {'of them trained':<26}{size.supervised:>14,.0f}",
        f"  {'tokens':<26}{steps * batch * size.tokens:>14,.0f}",
        f"  {'FLOPs a step':<26}{per_step:>14.3e}  {_shares(forward)}",
        f"  {'of them recomputed':<26}{recomputed * batch / per_step:>14.0%}",
        f"  {'FLOPs':<26}{steps * per_step:>14.3e}",
        *(f"  {name:<26}{amount / 2**30:>10.3f} GiB" for name, amount in memory.items()),
    ]


def _shares(forward: ForwardFlops) -> str:
    vision = (forward.vision_dense + forward.vision_attention) / forward.total
    attention, head = forward.language_attention / forward.total, forward.head / forward.total
    return f"forward: {vision:.0%} vision, {attention:.0%} attention, {head:.0%} head"


def _memory(trainable: int, total: int, task: Train, size: SampleSize, text: Any) -> dict[str, float]:
    """Bytes of one process that holds everything: weights and AdamW in float32, activations in the precision of the
    run.

    Activations: a block keeps its input when it is recomputed, else about 34 widths a position (Korthikanti et al.
    2022, eq. 1, without the attention matrix, which fused attention never stores).
    """
    width = 4 if task.placement.precision == "32-true" else 2
    kept = 1 if task.placement.activation_checkpointing else 34
    positions = task.data.micro_batch * (task.data.pack or size.tokens)
    return {
        "weights": 4.0 * total,
        "gradients": 4.0 * trainable,
        "optimizer": 8.0 * trainable,
        "activations (estimate)": float(width * kept * positions * text.hidden_size * text.num_hidden_layers),
    }


def measure(feed: Feed, mixture: Mixture) -> SampleSize:
    """Lengths of a few scenes of the mixture's first stream, each put to all its tasks, weighted as the recipe weighs
    them.

    Texts are counted with the small tokenizer of the repository, so that no hub is asked: a pretrained tokenizer
    needs somewhat fewer.
    """
    part = next(iter(mixture.parts.values()))
    processor = RandomBackbone({}).processor(feed.special_tokens)
    renderer = feed.renderer(processor)
    sums, weights = torch.zeros(3), 0.0
    for scene in part.source.preview(PREVIEWED):
        for name, weight in part.tasks.items():
            task = feed.tasks[name]
            if task.supports(scene):
                rendered = renderer.render(scene, task.conversation(scene, "plan"))
                batch = collate_for(renderer, [Sample(rendered, scene, name)])
                patches = len(batch["pixel_values"]) if "pixel_values" in batch else 0
                row = [batch["input_ids"].numel(), patches, supervised_tokens(batch["labels"])]
                sums, weights = sums + weight * torch.tensor(row), weights + weight
    if not weights:
        raise ValueError(f"mixture: no scene of its first stream supports any of {sorted(part.tasks)}")
    return SampleSize(*(sums / weights).tolist())
