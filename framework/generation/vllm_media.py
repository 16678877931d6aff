"""What a prompt shows beside its words, as vLLM's token-in-token-out endpoint takes it (vLLM 0.32).

The server is handed what the trainer's processor and encoders made, not pictures to process anew: no second processor
can disagree about sizes or pixels. The wire format is vLLM's own (`entrypoints/scale_out/token_in_token_out/mm_serde`):
MessagePack with tensors inline, in base64.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgpack
import torch
from torch import Tensor

RAW = 3
"""vLLM's MessagePack extension for the bytes of a tensor."""


@dataclass(frozen=True, slots=True)
class PromptMedia:
    """Something that takes `length` places of a prompt from `offset` on: an image's `pixels` `(patches, width)` in the
    `grid` (time, height, width in patches), or one place's `embedding` `(width,)`.
    """

    offset: int
    length: int
    grid: tuple[int, int, int]
    pixels: Tensor | None = None
    embedding: Tensor | None = None


def features(shown: Sequence[PromptMedia]) -> dict[str, Any] | None:
    """The request's `features`; None where only words are said."""
    if not shown:
        return None
    items = [_item(one) for one in sorted(shown, key=lambda one: one.offset)]
    ranges = [{"offset": one.offset, "length": one.length} for one in sorted(shown, key=lambda one: one.offset)]
    return {
        # The server keeps what it has encoded by this hash, over prompts and answers.
        "mm_hashes": {"image": [hashlib.sha256(item).hexdigest() for item in items]},
        "mm_placeholders": {"image": ranges},
        "kwargs_data": {"image": [base64.b64encode(item).decode() for item in items]},
    }


def _item(one: PromptMedia) -> bytes:
    name, values = ("pixel_values", one.pixels) if one.pixels is not None else ("image_embeds", one.embedding)
    assert values is not None
    rows = values if values.dim() == 2 else values[None]
    whole = [[[0, len(rows), None]]]
    fields = {
        name: (rows, ("flat", {"keep_on_cpu": False, "slices": whole, "dim": 0})),
        "image_grid_thw": (torch.tensor(one.grid), ("batched", {"keep_on_cpu": True})),
    }
    packed: bytes = msgpack.packb({key: {"data": _tensor(value), "field": how} for key, (value, how) in fields.items()})
    return packed


def _tensor(values: Tensor) -> tuple[str, tuple[int, ...], msgpack.ExtType]:
    values = values.detach().cpu().contiguous()
    raw = values.view(-1).view(torch.uint8).numpy().tobytes()
    return str(values.dtype).removeprefix("torch."), tuple(values.shape), msgpack.ExtType(RAW, raw)
