"""Images, frames and sensors of a prompt, as vLLM's token-in-token-out endpoint takes them (vLLM 0.32).

The server receives what the trainer's processor made, pixels and rows, and processes nothing itself: no second
processor can disagree about sizes or pixels. The wire format is vLLM's own
(`entrypoints/scale_out/token_in_token_out/mm_serde`): MessagePack with tensors inline, in base64.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgpack
import torch
from torch import Tensor

from framework.scene.batch import SensorRows

Layout = tuple[str, dict[str, Any]]
"""vLLM's name of the way in which the tensors of several items are joined, and its settings."""
RAW = 3
"""vLLM's MessagePack extension for the bytes of a tensor."""


@dataclass(frozen=True, slots=True)
class PromptMedia:
    """An image, a frame of a clip, or the rows of a sensor, in a prompt."""

    modality: str
    """What the server takes it for: `image`, or the sensor's name."""
    tensors: Mapping[str, tuple[Tensor, Layout]]
    """Its tensors by the server's names, each with how the server joins those of several items."""
    offset: int = 0
    """First position in the prompt."""
    length: int = 0
    """Number of positions."""


def frames_of(batch: Any, pixels: str, grids: str) -> Iterator[PromptMedia]:
    """Yields the images or the frames of clips under the keys `pixels` and `grids` of a batch, in order.

    A frame of a clip goes as an image: the vision tower computes both alike, they get the same positions where the clip
    has its tokens, and the endpoint cannot leave out the times between the frames of one item.
    """
    start = 0
    for time, height, width in batch.get(grids, torch.zeros(0, 3, dtype=torch.int64)).tolist():
        for _ in range(time):
            end = start + height * width
            flat: Layout = ("flat", {"keep_on_cpu": False, "slices": [[[0, end - start, None]]], "dim": 0})
            grid: Layout = ("batched", {"keep_on_cpu": True})
            tensors = {
                "pixel_values": (batch[pixels][start:end], flat),
                "image_grid_thw": (torch.tensor([1, height, width]), grid),
            }
            yield PromptMedia("image", tensors)
            start = end


def sensor_items(name: str, rows: SensorRows, tokens: int | None) -> Iterator[PromptMedia]:
    """Yields the rows of sensor `name` of each sample that has tokens of it, in order. `tokens` are those of a sample,
    None where each row gives one.
    """
    for values, mask in zip(rows["values"], rows["mask"], strict=True):
        count = int(mask.sum())
        if count or tokens is not None:
            kept = slice(0, max(count, 1))  # one row of padding where none is real
            how: Layout = ("batched", {"keep_on_cpu": False})
            yield PromptMedia(name, {f"{name}_values": (values[kept], how), f"{name}_mask": (mask[kept], how)})


def placed(prompt: Sequence[int], supply: Mapping[int, Iterator[PromptMedia]]) -> Iterator[PromptMedia]:
    """Yields the next item of `supply` for each run of one of its tokens in a prompt."""
    offset = 0
    for token, run in itertools.groupby(prompt):
        length = len(list(run))
        if token in supply:
            yield replace(next(supply[token]), offset=offset, length=length)
        offset += length


def features(media: Sequence[PromptMedia]) -> dict[str, Any] | None:
    """Returns the `features` of a request; None for a prompt of text alone."""
    if not media:
        return None
    found: dict[str, dict[str, list[Any]]] = {"mm_hashes": {}, "mm_placeholders": {}, "kwargs_data": {}}
    for item in sorted(media, key=lambda item: item.offset):
        packed = _pack(item)
        # The server caches encoded items by this hash, across prompts and answers, until its weights change.
        found["mm_hashes"].setdefault(item.modality, []).append(_digest(packed))
        found["mm_placeholders"].setdefault(item.modality, []).append({"offset": item.offset, "length": item.length})
        found["kwargs_data"].setdefault(item.modality, []).append(base64.b64encode(packed).decode())
    return found


def digests(media: Sequence[PromptMedia]) -> list[str]:
    """Returns the SHA-256 of what the server is sent of each item."""
    return [_digest(_pack(item)) for item in media]


def _digest(packed: bytes) -> str:
    return hashlib.sha256(packed).hexdigest()


def _pack(item: PromptMedia) -> bytes:
    packed: bytes = msgpack.packb(
        {name: {"data": _tensor(values), "field": how} for name, (values, how) in item.tensors.items()}
    )
    return packed


def _tensor(values: Tensor) -> tuple[str, tuple[int, ...], msgpack.ExtType]:
    values = values.detach().cpu().contiguous()
    raw = values.view(-1).view(torch.uint8).numpy().tobytes()
    return str(values.dtype).removeprefix("torch."), tuple(values.shape), msgpack.ExtType(RAW, raw)
