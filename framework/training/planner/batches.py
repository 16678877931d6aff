"""Statistics of a stage's samples, taken from a few scenes of its first stream."""

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

SCENES_SAMPLED = 6
"""Scenes that the statistics are taken from."""

WeightedSamples = Sequence[tuple[float, MicroBatch]]
"""Samples, each a micro-batch of its own, with the weight that the recipe gives its task."""


@dataclass(frozen=True, slots=True)
class SampleStatistics:
    """Weighted means and maxima over a few samples."""

    tokens: float
    """Mean number of positions."""
    patches: float
    """Mean number of image patches."""
    supervised: float
    """Mean number of supervised positions."""
    bytes: float
    """Mean size of a sample's tensors."""
    longest: int
    """Positions of the longest sample."""
    sensors: Mapping[str, tuple[float, int]]
    """By sensor: the share of samples that have it, and the most rows of any."""


def draw_samples(pipeline: DataPipeline, mixture: Mixture, answers: int = 1) -> WeightedSamples:
    """Render a few scenes of the mixture's first stream for all its tasks, with the recipe's task weights.

    The expected answer follows the prompt `answers` times. Texts are tokenized with the repository's small tokenizer,
    so that no hub is contacted; a pretrained tokenizer needs somewhat fewer tokens. Raises `ValueError` when no scene
    supports any task.
    """
    part = next(iter(mixture.parts.values()))
    renderer = pipeline.renderer(RandomBackbone({}).processor(pipeline.special_tokens))
    samples = []
    for scene in part.source.sample_scenes(SCENES_SAMPLED):
        for name, weight in part.tasks.items():
            task = pipeline.tasks[name]
            if task.supports(scene):
                rendered = renderer.render(scene, task.conversation(scene, "plan"))
                samples.append((weight, _micro_batch(renderer, Sample(rendered, scene, name), answers)))
    if not sum(weight for weight, _ in samples):
        raise ValueError(f"mixture: no scene of its first stream supports any of {sorted(part.tasks)}")
    return samples


def _micro_batch(renderer: ChatRenderer, sample: Sample, answers: int) -> MicroBatch:
    if answers == 1:
        return collate([sample], renderer.special_ids)
    ids, learned = sample.rendered.input_ids, sample.rendered.labels != IGNORE_INDEX
    prompt = replace(sample.rendered, input_ids=ids[~learned], labels=sample.rendered.labels[~learned])
    group = [ids[learned].tolist()] * answers
    return collate_shared_prefix([sample._replace(rendered=prompt)], [group], renderer.special_ids)


def sample_statistics(samples: WeightedSamples) -> SampleStatistics:
    """The statistics of `samples`."""
    total = sum(weight for weight, _ in samples)

    def mean(size: Any) -> float:
        return sum(weight * size(batch) for weight, batch in samples) / total

    names = dict.fromkeys(name for _, batch in samples for name in batch["sensors"])
    return SampleStatistics(
        tokens=mean(lambda batch: batch["input_ids"].numel()),
        patches=mean(_patches),
        supervised=mean(lambda batch: supervised_tokens(batch["labels"])),
        bytes=mean(_bytes),
        longest=max(batch["input_ids"].numel() for _, batch in samples),
        sensors={
            name: (
                mean(lambda batch, name=name: name in batch["sensors"]),
                max(batch["sensors"][name]["mask"].shape[1] for _, batch in samples if name in batch["sensors"]),
            )
            for name in names
        },
    )


def _patches(batch: MicroBatch) -> int:
    return sum(len(batch[key]) for key in ("pixel_values", "pixel_values_videos") if key in batch)


def _bytes(batch: MicroBatch) -> int:
    return sum(leaf.nbytes for leaf in tree_leaves(dict(batch)) if isinstance(leaf, Tensor))
