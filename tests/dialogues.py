"""Dialogues with drawn pictures, for tests."""

from __future__ import annotations

import io

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


def _png(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bytes:
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, format="PNG")
    return written.getvalue()
