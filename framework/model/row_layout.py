"""The layout of a micro-batch as one row without padding, computed once on the host for all passes and layers.

Nothing on the device has to be read for it: neither lengths nor positions, neither the places of images and sensors nor
the vision tower's frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from framework.model.segments import Segments
from framework.scene.batch import MicroBatch, RowLayout

GRAIN = 8
"""The row's length is a multiple of it, so that tensor-parallel ranks can share its positions and matrix products stay
aligned. What is added is a segment of its own, which nothing reads."""
SHARED_GRAIN = 512
"""The same where ranks share tensors: DTensor plans every operation for each length that it has not seen, which takes
many times as long as the operation."""


def row_layout(
    batch: MicroBatch,
    position_ids: Tensor,
    placeholders: Mapping[str, int],
    visual: nn.Module,
    media_token: int,
    grain: int = GRAIN,
) -> RowLayout:
    """The layout of `batch`, which is on the CPU.

    Args:
        batch: A micro-batch of padded or packed rows, or of answers that share prompts, with one kind of media.
        position_ids: Its position ids, `(4, b, t)`.
        placeholders: The token id of each sensor's placeholders.
        visual: The vision tower.
        media_token: The token id of images, or of clips where there are no images.
        grain: What the row's length is a multiple of.
    """
    real = batch["attention_mask"].bool().flatten()
    places = real.nonzero()[:, 0]
    spare = -len(places) % grain
    padded = F.pad(places, (0, spare))
    tokens = batch["input_ids"].flatten()[places]
    lengths, prompts = _segments(batch, real)
    numbers = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    layout = RowLayout(
        places=places,
        rows=torch.zeros(len(real), dtype=torch.int64).index_copy(0, places, torch.arange(len(places))),
        input_ids=F.pad(tokens, (0, spare))[None],
        position_ids=F.pad(position_ids.flatten(1)[:, places], (0, spare))[:, None],
        samples=F.pad(_samples(batch, real, numbers), (0, spare), value=-1),
        lengths=lengths + ([spare] if spare else []),
        sensors={name: (tokens == token).nonzero()[:, 0] for name, token in placeholders.items()},
        kept={name: rows["mask"].flatten().nonzero()[:, 0] for name, rows in batch.get("sensors", {}).items()},
        size=len(padded),
    )
    layout["bounds"] = _bounds(layout["lengths"])
    if prompts is not None:
        layout["keys"], layout["key_lengths"] = _shared_keys(lengths, prompts, len(places), spare)
        layout["key_bounds"] = _bounds(layout["key_lengths"])
    grid = batch.get("image_grid_thw", batch.get("video_grid_thw"))
    if grid is not None:
        layout["media"] = (tokens == media_token).nonzero()[:, 0]
        layout["tower"] = tower_inputs(grid, visual)
        layout["frames"] = torch.repeat_interleave(grid[:, 1] * grid[:, 2], grid[:, 0]).tolist()
    return layout


def segments_of(layout: RowLayout) -> Segments:
    """What attention in the language model takes of a layout, whose tensors are on its device."""
    lengths, bounds = tuple(layout["lengths"]), layout["bounds"]
    if "keys" not in layout:
        return Segments(lengths, bounds, lengths, bounds, None, max(lengths), max(lengths))
    key_lengths = tuple(layout["key_lengths"])
    keys, key_bounds = layout["keys"], layout["key_bounds"]
    return Segments(lengths, bounds, key_lengths, key_bounds, keys, max(lengths), max(key_lengths))


def frames_of(layout: RowLayout) -> Segments:
    """What attention in the vision tower takes: patches see those of their frame."""
    lengths, bounds = tuple(layout["frames"]), layout["tower"]["cu_seqlens"]
    return Segments(lengths, bounds, lengths, bounds, None, max(lengths), max(lengths))


def tower_inputs(grid: Tensor, visual: Any) -> dict[str, Any]:
    """The vision tower's arguments that it would otherwise derive from `grid` `(media, 3)` on the device: ends of
    frames, positions of patches, and places and weights of its learned positions."""
    if find_spec("transformers.vision_utils") is None:  # transformers 4.57 derives them itself
        return {}
    from transformers import vision_utils

    merge, side = visual.config.spatial_merge_size, visual.num_grid_per_side
    bounds = vision_utils.get_vision_cu_seqlens(grid)
    indices, weights = vision_utils.get_vision_interpolation_indices_and_weights(
        grid,
        num_grid_per_side=side,
        mode=visual.interpolation_mode,
        align_corners=visual.interpolation_align_corners,
        spatial_merge_size=merge,
    )
    return {
        "cu_seqlens": bounds,
        "max_seqlen": int(bounds.diff().max()),
        "position_ids": vision_utils.get_vision_position_ids(grid, merge),
        "interp_indices": indices,
        "interp_weights": weights,
    }


def _segments(batch: MicroBatch, real: Tensor) -> tuple[list[int], list[bool] | None]:
    """The lengths of the segments of real tokens; where answers share prompts, also which segments are prompts."""
    shape = batch["attention_mask"].shape
    inner = batch.get("segments", batch.get("shared_prefix", torch.zeros(shape, dtype=torch.int64)))
    codes = inner + (shape[1] + 1) * torch.arange(shape[0])[:, None]
    values, counts = codes.flatten()[real].unique_consecutive(return_counts=True)
    prompts = [value % (shape[1] + 1) == 0 for value in values.tolist()] if "shared_prefix" in batch else None
    return counts.tolist(), prompts


def _samples(batch: MicroBatch, real: Tensor, numbers: Tensor) -> Tensor:
    """The sample of each real token; answers to one prompt are of one sample."""
    if "shared_prefix" not in batch:
        return numbers
    rows, length = batch["attention_mask"].shape
    return torch.arange(rows).repeat_interleave(length)[real]


def _shared_keys(lengths: list[int], prompts: list[bool], count: int, spare: int) -> tuple[Tensor, list[int]]:
    """The places of the keys that each segment sees, and how many: an answer sees its prompt, then itself."""
    keys: list[Tensor] = []
    prompt, start = torch.zeros(0, dtype=torch.int64), 0
    for length, is_prompt in zip(lengths, prompts, strict=True):
        own = torch.arange(start, start + length)
        prompt = own if is_prompt else prompt
        keys.append(own if is_prompt else torch.cat([prompt, own]))
        start += length
    if spare:
        keys.append(torch.arange(count, count + spare))
    return torch.cat(keys), [len(each) for each in keys]


def _bounds(lengths: list[int]) -> Tensor:
    return F.pad(torch.tensor(lengths, dtype=torch.int32).cumsum(0, dtype=torch.int32), (1, 0))
