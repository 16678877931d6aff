"""How large a stage's samples are, from a few scenes of its first stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from framework.data.pipeline import DataPipeline
from framework.data.render.chat import ChatRenderer
from framework.data.render.collate import collate, collate_shared_prefix
from framework.data.render.sample import Sample
from framework.data.stream.mixture import Mixture
from framework.model.backbone import RandomBackbone
from framework.objective.supervised import supervised_tokens
from framework.scene.batch import IGNORE_INDEX, MicroBatch

PREVIEWED = 6
"""Scenes that are looked at."""

Previewed = Sequence[tuple[float, MicroBatch]]
"""Samples, each a micro-batch of its own, with the weight that the recipe gives its task."""


@dataclass(frozen=True, slots=True)
class SampleSize:
    """Means over previewed samples: positions, image patches, supervised positions and bytes of tensors; the most
    positions of any (`longest`); and of each sensor the share of samples that have it and the most rows of any.
    """

    tokens: float
    patches: float
    supervised: float
    bytes: float
    longest: int
    sensors: Mapping[str, tuple[float, int]]


def preview(pipeline: DataPipeline, mixture: Mixture, answers: int = 1) -> Previewed:
    """A few scenes of the mixture's first stream, each put to all its tasks, weighted as the recipe weighs them, with
    the expected answer `answers` times behind the prompt.

    Texts are cut with the small tokenizer of the repository, so that no hub is asked: a pretrained tokenizer needs
    somewhat fewer tokens. Raises `ValueError` when no scene supports any task.
    """
    part = next(iter(mixture.parts.values()))
    renderer = pipeline.renderer(RandomBackbone({}).processor(pipeline.special_tokens))
    found = []
    for scene in part.source.sample_scenes(PREVIEWED):
        for name, weight in part.tasks.items():
            task = pipeline.tasks[name]
            if task.supports(scene):
                rendered = renderer.render(scene, task.conversation(scene, "plan"))
                found.append((weight, _micro_batch(renderer, Sample(rendered, scene, name), answers)))
    if not sum(weight for weight, _ in found):
        raise ValueError(f"mixture: no scene of its first stream supports any of {sorted(part.tasks)}")
    return found


def _micro_batch(renderer: ChatRenderer, sample: Sample, answers: int) -> MicroBatch:
    if answers == 1:
        return collate([sample], renderer.special_ids)
    ids, learned = sample.rendered.input_ids, sample.rendered.labels != IGNORE_INDEX
    prompt = replace(sample.rendered, input_ids=ids[~learned], labels=sample.rendered.labels[~learned])
    group = [ids[learned].tolist()] * answers
    return collate_shared_prefix([sample._replace(rendered=prompt)], [group], renderer.special_ids)


def sample_size(previewed: Previewed) -> SampleSize:
    """The means of what was previewed."""
    total = sum(weight for weight, _ in previewed)

    def mean(size: Any) -> float:
        return sum(weight * size(batch) for weight, batch in previewed) / total

    names = dict.fromkeys(name for _, batch in previewed for name in batch["sensors"])
    return SampleSize(
        tokens=mean(lambda batch: batch["input_ids"].numel()),
        patches=mean(_patches),
        supervised=mean(lambda batch: supervised_tokens(batch["labels"])),
        bytes=mean(_bytes),
        longest=max(batch["input_ids"].numel() for _, batch in previewed),
        sensors={
            name: (
                mean(lambda batch, name=name: name in batch["sensors"]),
                max(batch["sensors"][name]["mask"].shape[1] for _, batch in previewed if name in batch["sensors"]),
            )
            for name in names
        },
    )


def _patches(batch: MicroBatch) -> int:
    return sum(len(batch[key]) for key in ("pixel_values", "pixel_values_videos") if key in batch)


def _bytes(batch: MicroBatch) -> int:
    return sum(leaf.nbytes for leaf in tree_leaves(dict(batch)) if isinstance(leaf, Tensor))
