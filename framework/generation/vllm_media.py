"""Images and sensor embeddings of a prompt, as vLLM's token-in-token-out endpoint takes them (vLLM 0.32).

The server receives what the trainer's processor and encoders computed, and processes no pictures itself: no second
processor can disagree about sizes or pixels. The wire format is vLLM's own
(`entrypoints/scale_out/token_in_token_out/mm_serde`): MessagePack with tensors inline, in base64.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack
import torch
from torch import Tensor

RAW = 3
"""vLLM's MessagePack extension for the bytes of a tensor."""


@dataclass(frozen=True, slots=True)
class PromptMedia:
    """An image, or the embedding of one sensor position, in a prompt."""

    offset: int
    """First position of the item in the prompt."""
    length: int
    """Number of positions."""
    grid: tuple[int, int, int]
    """Time, height and width in patches."""
    pixels: Tensor | None = None
    """`(patches, width)` of an image, as the processor made them."""
    embedding: Tensor | None = None
    """`(width,)` of a sensor position, as the encoder made it."""


def images_of(batch: Any, merge: int) -> Iterator[PromptMedia]:
    """Yields the images of a batch in order, with offset 0; `merge` patches on a side make one position."""
    start = 0
    for time, height, width in batch.get("image_grid_thw", torch.zeros(0, 3, dtype=torch.int64)).tolist():
        end = start + time * height * width
        yield PromptMedia(
            0, (end - start) // merge**2, (time, height, width), pixels=batch["pixel_values"][start:end].cpu()
        )
        start = end


def features(media: Sequence[PromptMedia]) -> dict[str, Any] | None:
    """Returns the `features` of a request; None for a prompt of text alone."""
    if not media:
        return None
    items = sorted(media, key=lambda item: item.offset)
    packed = [_pack(item) for item in items]
    ranges = [{"offset": item.offset, "length": item.length} for item in items]
    return {
        # The server caches encoded items by this hash, across prompts and answers.
        "mm_hashes": {"image": [hashlib.sha256(data).hexdigest() for data in packed]},
        "mm_placeholders": {"image": ranges},
        "kwargs_data": {"image": [base64.b64encode(data).decode() for data in packed]},
    }


def _pack(item: PromptMedia) -> bytes:
    name, values = ("pixel_values", item.pixels) if item.pixels is not None else ("image_embeds", item.embedding)
    assert values is not None
    rows = values if values.dim() == 2 else values[None]
    whole = [[[0, len(rows), None]]]
    fields = {
        name: (rows, ("flat", {"keep_on_cpu": False, "slices": whole, "dim": 0})),
        "image_grid_thw": (torch.tensor(item.grid), ("batched", {"keep_on_cpu": True})),
    }
    packed: bytes = msgpack.packb({key: {"data": _tensor(value), "field": how} for key, (value, how) in fields.items()})
    return packed


def _tensor(values: Tensor) -> tuple[str, tuple[int, ...], msgpack.ExtType]:
    values = values.detach().cpu().contiguous()
    raw = values.view(-1).view(torch.uint8).numpy().tobytes()
    return str(values.dtype).removeprefix("torch."), tuple(values.shape), msgpack.ExtType(RAW, raw)
