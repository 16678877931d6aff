"""Statistics of a stage's samples, counted from outlines of the scenes of all streams that its mixture names."""

from __future__ import annotations

import itertools
import logging
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._pytree import tree_leaves

from framework.data.pipeline import DataPipeline
from framework.data.render.chat import ChatRenderer
from framework.data.render.collate import collate, collate_shared_prefix
from framework.data.render.sample import Sample
from framework.data.render.tasks import teaches
from framework.data.shards.statistics import Survey
from framework.data.stream.mixture import Mixture, Part, mean_shares
from framework.objective.supervised import supervised_tokens
from framework.scene.batch import IGNORE_INDEX, MicroBatch
from framework.scene.inputs import with_inputs
from framework.scene.types import SceneError

log = logging.getLogger(__name__)

OUTLINES_DRAWN = 16
"""Scenes of a stream that are counted where its index has no statistics."""
NO_LIMIT = 1 << 30
"""Tokens to which samples are rendered, to tell how long those are that the recipe refuses."""


class CountedSample(NamedTuple):
    """A sample as a micro-batch of its own, whose pixels have no data."""

    weight: float
    """Its share of the stage's samples."""
    batch: MicroBatch
    """The sample."""


@dataclass(frozen=True, slots=True)
class SampleStatistics:
    """Weighted means and maxima over the counted samples."""

    tokens: float
    """Mean number of positions."""
    patches: float
    """Mean number of image patches."""
    supervised: float
    """Mean number of supervised positions."""
    bytes: float
    """Mean size of a sample's tensors."""
    lengths: Sequence[tuple[float, int]]
    """Shares of samples with their number of positions, in ascending order."""
    sensors: Mapping[str, tuple[float, int]]
    """By sensor: the share of samples that have it, and the most rows of any."""
    refused: float = 0.0
    """Share of the stage's samples that are longer than the recipe allows, and are not trained."""

    @property
    def longest(self) -> int:
        """Positions of the longest sample."""
        return self.lengths[-1][1]

    def typical_lengths(self, count: int) -> list[int]:
        """The lengths of `count` samples that are spread as the stage's are."""
        ends = list(itertools.accumulate(share for share, _ in self.lengths))
        places = (bisect_left(ends, (index + 0.5) / count * ends[-1]) for index in range(count))
        return [self.lengths[place][1] for place in places]


def count_samples(
    pipeline: DataPipeline, mixture: Mixture, processor: Any, steps: int, answers: int = 1
) -> tuple[list[CountedSample], float]:
    """Render outlines of the scenes of `mixture` for all its tasks, with the weights that the recipe gives streams and
    tasks in a stage of `steps` steps. The expected answer follows the prompt `answers` times.

    Returns the samples, and the share of samples that are longer than `max_length`. Raises `SceneError` where no sample
    remains, and where a stream cannot be read.
    """
    surveys = {name: part.source.survey(OUTLINES_DRAWN) for name, part in mixture.parts.items()}
    shares = mean_shares(mixture, [survey.samples for survey in surveys.values()], steps, pipeline.global_batch)
    renderer = pipeline.outline_renderer(processor, NO_LIMIT)
    samples = []
    refused = 0.0
    for name, part in mixture.parts.items():
        for task in _impossible(pipeline, part, surveys[name]):
            log.warning("%s: no scene supports the task %s, whose share goes to its other tasks", name, task)
        for weight, sample in _of_part(pipeline, part, surveys[name], renderer):
            if len(sample.rendered.input_ids) > pipeline.max_length:
                refused += shares[name] * weight
            else:
                samples.append(CountedSample(shares[name] * weight, _micro_batch(renderer, sample, answers)))
    if not sum(sample.weight for sample in samples):
        reason = f"is longer than data.max_length: {pipeline.max_length}" if refused else "supports any of its tasks"
        none = "every scene" if refused else "no scene"
        raise SceneError(f"{none} of {', '.join(mixture.parts)} {reason}")
    return samples, refused


def _impossible(pipeline: DataPipeline, part: Part, survey: Survey) -> list[str]:
    """Returns the tasks of a stream that none of the surveyed scenes supports, such as driving without a future."""
    scenes = [scene for _, scene in survey.outlines]
    return [name for name in part.weights if not any(teaches(pipeline.tasks[name], scene) for scene in scenes)]


def _of_part(
    pipeline: DataPipeline, part: Part, survey: Survey, renderer: ChatRenderer
) -> Iterator[tuple[float, Sample]]:
    """Yields the samples of a stream, with weights whose sum is 1 where every scene supports a task."""
    total = sum(count for count, _ in survey.outlines)
    for count, scene in survey.outlines:
        weights = {name: weight for name, weight in part.weights.items() if teaches(pipeline.tasks[name], scene)}
        for name, weight in weights.items():
            shown = with_inputs(scene, part.inputs)
            rendered = renderer.render(shown, pipeline.tasks[name].conversation(shown, "plan"))
            yield count / total * weight / sum(weights.values()), Sample(rendered, scene, name)


def _micro_batch(renderer: ChatRenderer, sample: Sample, answers: int) -> MicroBatch:
    if answers == 1:
        return collate([sample], renderer.special_ids)
    ids, learned = sample.rendered.input_ids, sample.rendered.labels != IGNORE_INDEX
    prompt = replace(sample.rendered, input_ids=ids[~learned], labels=sample.rendered.labels[~learned])
    group = [ids[learned].tolist()] * answers
    return collate_shared_prefix([sample._replace(rendered=prompt)], [group], renderer.special_ids)


def sample_statistics(samples: Sequence[CountedSample], refused: float = 0.0) -> SampleStatistics:
    """The statistics of `samples`, of which there were `refused` more, see `SampleStatistics`."""
    total = sum(sample.weight for sample in samples)

    def mean(size: Any) -> float:
        return sum(weight * size(batch) for weight, batch in samples) / total

    names = dict.fromkeys(name for _, batch in samples for name in batch["sensors"])
    return SampleStatistics(
        tokens=mean(lambda batch: batch["input_ids"].numel()),
        patches=mean(_patches),
        supervised=mean(lambda batch: supervised_tokens(batch["labels"])),
        bytes=mean(_bytes),
        lengths=sorted(((weight / total, batch["input_ids"].numel()) for weight, batch in samples), key=lambda s: s[1]),
        sensors={
            name: (
                mean(lambda batch, name=name: name in batch["sensors"]),
                max(batch["sensors"][name]["mask"].shape[1] for _, batch in samples if name in batch["sensors"]),
            )
            for name in names
        },
        refused=refused / (refused + total),
    )


def _patches(batch: MicroBatch) -> int:
    return sum(len(batch[key]) for key in ("pixel_values", "pixel_values_videos") if key in batch)


def _bytes(batch: MicroBatch) -> int:
    return sum(leaf.nbytes for leaf in tree_leaves(dict(batch)) if isinstance(leaf, Tensor))
