"""Samples to micro-batches: padding, and the rows of every sensor that any of them has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from framework.data.chat import IGNORED, Rendered
from framework.scene.batch import MicroBatch, SensorRows
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
    """One micro-batch of rendered samples.

    Training pads on the right, generation on the left. `image_id` and `video_id` are the backbone's media
    placeholders, from which the token types are told.
    """
    input_ids = _pad([sample.input_ids for sample in samples], pad_id, side)
    attention = _pad([torch.ones_like(sample.input_ids) for sample in samples], 0, side)
    batch = MicroBatch(
        input_ids=input_ids,
        attention_mask=attention,
        labels=_pad([sample.labels for sample in samples], IGNORED, side),
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
