"""A dialogue in a record: turns and sizes as JSON, images and clips as bytes among the arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from framework.scene.dialogue import Dialogue, Medium, Turn


def encode_dialogue(dialogue: Dialogue, arrays: dict[str, Any]) -> dict[str, Any]:
    """Returns the facts of `dialogue`, and adds its media to `arrays`."""
    media = [_medium_facts(medium, f"dialogue.media{index}", arrays) for index, medium in enumerate(dialogue.media)]
    return {"turns": [[turn.role, *turn.parts] for turn in dialogue.turns], "media": media}


def decode_dialogue(facts: Mapping[str, Any], arrays: Mapping[str, Any]) -> Dialogue:
    """Returns the dialogue that `encode_dialogue` wrote. Raises `KeyError` where a medium lacks."""
    media = [_medium(medium, f"dialogue.media{index}", arrays) for index, medium in enumerate(facts["media"])]
    return Dialogue(tuple(Turn(role, tuple(parts)) for role, *parts in facts["turns"]), tuple(media))


def _medium_facts(medium: Medium, name: str, arrays: dict[str, Any]) -> dict[str, Any]:
    arrays[f"{name}.times"] = medium.times
    encoded = medium.frames if medium.clip is None else (medium.clip,)
    if encoded:
        arrays[f"{name}.encoded"] = np.frombuffer(b"".join(encoded), dtype=np.uint8)
    return {
        "width": medium.width,
        "height": medium.height,
        "bytes": [len(part) for part in encoded],
        "clip": medium.clip is not None,
    }


def _medium(facts: Mapping[str, Any], name: str, arrays: Mapping[str, Any]) -> Medium:
    ends = np.cumsum(facts["bytes"], dtype=np.int64).tolist()
    encoded = arrays[f"{name}.encoded"].tobytes() if ends else b""
    if ends and ends[-1] != len(encoded):
        raise ValueError(f"{name}: {len(encoded)} bytes where facts count {ends[-1]}")
    parts = tuple(encoded[start:end] for start, end in zip([0, *ends], ends, strict=False))
    frames, clip = ((), parts[0]) if facts["clip"] else (parts, None)
    return Medium(frames, arrays[f"{name}.times"], facts["width"], facts["height"], clip)
