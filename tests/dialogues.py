"""Dialogues with drawn pictures, for tests."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from framework.scene.dialogue import Dialogue, Medium, Turn
from framework.scene.types import Scene


def picture(seed: int = 0, size: tuple[int, int] = (64, 48)) -> Medium:
    """An image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Medium((_png(pixels),), np.zeros(1), *size)


def film(seed: int = 0, frames: int = 4, size: tuple[int, int] = (64, 48), rate_hz: float = 2.0) -> Medium:
    """A video of noise, as single images."""
    images = [picture(100 * seed + index, size).frames[0] for index in range(frames)]
    return Medium(tuple(images), np.arange(frames) / rate_hz, *size)


def dialogue(*turns: tuple[str, str | list[str | Medium]]) -> Dialogue:
    """A dialogue of roles with a text, or with texts and media."""
    media: list[Medium] = []
    spoken = []
    for role, content in turns:
        parts: list[str | int] = []
        for part in [content] if isinstance(content, str) else content:
            if isinstance(part, Medium):
                media.append(part)
                parts.append(len(media) - 1)
            else:
                parts.append(part)
        spoken.append(Turn(role, tuple(parts)))
    return Dialogue(tuple(spoken), tuple(media))


def scene_of(talk: Dialogue, name: str = "talk") -> Scene:
    """The dialogue as a scene."""
    return Scene(name, "conversation", dialogue=talk)


def written_conversations(folder: Path, rows: int = 40) -> Path:
    """A new folder with a file of conversations in LLaVA's form, of which three in four show an image; returned."""
    (folder / "images").mkdir(parents=True)
    lines = []
    for number in range(rows):
        row: dict[str, Any] = {"id": f"talk-{number}"}
        if number % 4:
            row["image"] = f"images/{number}.png"
            (folder / "images" / f"{number}.png").write_bytes(picture(number).frames[0])
        ask = "<image>\nWhat is it?" if number % 4 else f"What is {number} and 1?"
        spoken = {"human": ask, "gpt": f"It is {number + 1}."}
        row["conversations"] = [{"from": speaker, "value": text} for speaker, text in spoken.items()]
        lines.append(json.dumps(row))
    (folder / "talks.jsonl").write_text("\n".join(lines))
    return folder


def _png(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bytes:
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, format="PNG")
    return written.getvalue()
