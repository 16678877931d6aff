"""Samples to micro-batches: padding, and the rows of every sensor that any of them has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from framework.data.render.chat import Rendered
from framework.scene.batch import IGNORE_INDEX, MicroBatch, SensorRows
from framework.scene.types import FloatArray, Scene


def collate(
    samples: Sequence[Rendered],
    scenes: Sequence[Scene],
    tasks: Sequence[str],
    pad_id: int,
    image_id: int,
    video_id: int,
    side: Literal["left", "right"] = "right",
) -> MicroBatch:
    """One micro-batch of rendered samples, a row each.

    Training pads on the right, generation on the left. `image_id` and `video_id` are the backbone's media
    placeholders, from which the token types are told.
    """
    return _collate([[sample] for sample in samples], scenes, tasks, pad_id, image_id, video_id, side)


def collate_packed(
    rows: Sequence[Sequence[Rendered]],
    scenes: Sequence[Scene],
    tasks: Sequence[str],
    pad_id: int,
    image_id: int,
    video_id: int,
) -> MicroBatch:
    """One micro-batch of rows of several samples one after another, and the `segments` that keep them apart.

    Everything that a sample has one of is in the samples' order, row by row: `scenes` and `tasks` are given so.
    """
    batch = _collate(rows, scenes, tasks, pad_id, image_id, video_id, "right")
    numbers = [[torch.full_like(sample.input_ids, n) for n, sample in enumerate(row, start=1)] for row in rows]
    batch["segments"] = _pad([torch.cat(row) for row in numbers], 0, "right")
    return batch


def collate_shared_prefix(
    prompts: Sequence[Rendered],
    answers: Sequence[Sequence[Sequence[int]]],
    scenes: Sequence[Scene],
    tasks: Sequence[str],
    pad_id: int,
    image_id: int,
    video_id: int,
) -> MicroBatch:
    """One micro-batch whose rows are a prompt each and all `answers` to it, as token ids, and the `branches` that keep
    them apart.
    """
    rows, branches = [], []
    for prompt, texts in zip(prompts, answers, strict=True):
        said = [torch.tensor(text, dtype=torch.int64) for text in texts]
        ids = torch.cat([prompt.input_ids, *said])
        labels = torch.cat([torch.full_like(prompt.input_ids, IGNORE_INDEX), *said])
        rows.append(Rendered(ids, labels, prompt.media, prompt.sensors))
        numbers = [torch.full_like(text, number) for number, text in enumerate(said, start=1)]
        branches.append(torch.cat([torch.zeros_like(prompt.input_ids), *numbers]))
    batch = collate(rows, scenes, tasks, pad_id, image_id, video_id)
    batch["shared_prefix"] = _pad(branches, 0, "right")
    return batch


def _collate(
    rows: Sequence[Sequence[Rendered]],
    scenes: Sequence[Scene],
    tasks: Sequence[str],
    pad_id: int,
    image_id: int,
    video_id: int,
    side: Literal["left", "right"],
) -> MicroBatch:
    samples = [sample for row in rows for sample in row]
    ids = [torch.cat([sample.input_ids for sample in row]) for row in rows]
    input_ids = _pad(ids, pad_id, side)
    batch = MicroBatch(
        input_ids=input_ids,
        attention_mask=_pad([torch.ones_like(row) for row in ids], 0, side),
        labels=_pad([torch.cat([_learned(sample) for sample in row]) for row in rows], IGNORE_INDEX, side),
        mm_token_type_ids=(input_ids == image_id).long() + 2 * (input_ids == video_id).long(),
        sensors=_sensors(samples),
        scenes=list(scenes),
        tasks=list(tasks),
        sample_ids=[scene.id for scene in scenes],
    )
    for name in ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw"):
        parts = [sample.media[name] for sample in samples if name in sample.media]
        if parts:
            batch[name] = torch.cat(parts)
    return batch


def _learned(sample: Rendered) -> Tensor:
    """A sample's labels `(t,)`, never its first: in a row, the token before it is another sample's."""
    return torch.cat([torch.full_like(sample.labels[:1], IGNORE_INDEX), sample.labels[1:]])


def _pad(rows: Sequence[Tensor], value: int, side: Literal["left", "right"]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value, padding_side=side)


def _sensors(samples: Sequence[Rendered]) -> dict[str, SensorRows]:
    names = dict.fromkeys(name for sample in samples for name in sample.sensors)
    return {name: _stack([sample.sensors[name] for sample in samples if name in sample.sensors]) for name in names}


def _stack(rows: Sequence[FloatArray]) -> SensorRows:
    longest = max(map(len, rows))
    values = np.zeros((len(rows), longest, rows[0].shape[1]), dtype=np.float32)
    mask = np.zeros((len(rows), longest), dtype=bool)
    for index, found in enumerate(rows):
        values[index, : len(found)] = found
        mask[index, : len(found)] = True
    return SensorRows(values=torch.from_numpy(values), mask=torch.from_numpy(mask))
