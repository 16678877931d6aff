"""Collates samples into micro-batches: padding, packing, shared prefixes and the rows of every sensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from framework.data.render.sample import Rendered, Sample
from framework.scene.batch import IGNORE_INDEX, MicroBatch, SensorRows
from framework.scene.types import FloatArray

MEDIA = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")
"""The processor's tensors that a batch concatenates over its samples."""


class SpecialIds(NamedTuple):
    """The token ids that collation has to know."""

    pad: int
    """Fills rows up to the longest."""
    image: int
    """Stands for one image token; its positions have token type 1."""
    video: int
    """Stands for one video token; its positions have token type 2."""


def collate(samples: Sequence[Sample], ids: SpecialIds, side: Literal["left", "right"] = "right") -> MicroBatch:
    """Returns one micro-batch with a sample in each row, padded on `side`: right for training, left for generation."""
    return _collate([[sample] for sample in samples], ids, side)


def collate_packed(rows: Sequence[Sequence[Sample]], ids: SpecialIds) -> MicroBatch:
    """Returns one micro-batch whose rows hold several samples each, with the `segments` that keep them apart.

    Everything that has one entry a sample (scenes, tasks, sensors, media) is ordered row by row.
    """
    batch = _collate(rows, ids, "right")
    numbers = [[torch.full_like(sample.rendered.input_ids, n) for n, sample in enumerate(row, start=1)] for row in rows]
    batch["segments"] = _pad([torch.cat(row) for row in numbers], 0, "right")
    return batch


def collate_shared_prefix(
    prompts: Sequence[Sample], answers: Sequence[Sequence[Sequence[int]]], ids: SpecialIds
) -> MicroBatch:
    """Returns one micro-batch whose rows are a prompt and all its `answers` (token ids), with the `shared_prefix`
    numbers that keep the answers apart.
    """
    rows, prefixes = [], []
    for prompt, group in zip(prompts, answers, strict=True):
        rendered = prompt.rendered
        texts = [torch.tensor(text, dtype=torch.int64) for text in group]
        input_ids = torch.cat([rendered.input_ids, *texts])
        labels = torch.cat([torch.full_like(rendered.input_ids, IGNORE_INDEX), *texts])
        rows.append(prompt._replace(rendered=Rendered(input_ids, labels, rendered.media, rendered.sensors)))
        numbers = [torch.full_like(text, number) for number, text in enumerate(texts, start=1)]
        prefixes.append(torch.cat([torch.zeros_like(rendered.input_ids), *numbers]))
    batch = collate(rows, ids)
    batch["shared_prefix"] = _pad(prefixes, 0, "right")
    return batch


def without_labels(batch: MicroBatch) -> MicroBatch:
    """Returns `batch` with nothing to learn: a rank without samples computes it so that collectives still match."""
    return {**batch, "labels": torch.full_like(batch["labels"], IGNORE_INDEX)}


def _collate(rows: Sequence[Sequence[Sample]], ids: SpecialIds, side: Literal["left", "right"]) -> MicroBatch:
    samples = [sample for row in rows for sample in row]
    rendered = [sample.rendered for sample in samples]
    tokens = [torch.cat([sample.rendered.input_ids for sample in row]) for row in rows]
    labels = [torch.cat([_learned(sample.rendered) for sample in row]) for row in rows]
    input_ids = _pad(tokens, ids.pad, side)
    batch = MicroBatch(
        input_ids=input_ids,
        attention_mask=_pad([torch.ones_like(row) for row in tokens], 0, side),
        labels=_pad(labels, IGNORE_INDEX, side),
        mm_token_type_ids=(input_ids == ids.image).long() + 2 * (input_ids == ids.video).long(),
        sensors=_sensors(rendered),
        scenes=[sample.scene for sample in samples],
        tasks=[sample.task for sample in samples],
        sample_ids=[sample.scene.id for sample in samples],
    )
    for name in MEDIA:
        parts = [sample.media[name] for sample in rendered if name in sample.media]
        if parts:
            batch[name] = torch.cat(parts)  # type: ignore[literal-required]  # MEDIA are keys of MicroBatch
    return batch


def _learned(sample: Rendered) -> Tensor:
    """Returns a sample's labels `(t,)` without its first: in a packed row, another sample's token precedes it."""
    return torch.cat([torch.full_like(sample.labels[:1], IGNORE_INDEX), sample.labels[1:]])


def _pad(rows: Sequence[Tensor], value: int, side: Literal["left", "right"]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value, padding_side=side)


def _sensors(samples: Sequence[Rendered]) -> dict[str, SensorRows]:
    names = dict.fromkeys(name for sample in samples for name in sample.sensors)
    return {name: _stack([sample.sensors[name] for sample in samples if name in sample.sensors]) for name in names}


def _stack(sensors: Sequence[FloatArray]) -> SensorRows:
    longest = max(map(len, sensors))
    values = np.zeros((len(sensors), longest, sensors[0].shape[1]), dtype=np.float32)
    mask = np.zeros((len(sensors), longest), dtype=bool)
    for index, rows in enumerate(sensors):
        values[index, : len(rows)] = rows
        mask[index, : len(rows)] = True
    return SensorRows(values=torch.from_numpy(values), mask=torch.from_numpy(mask))
