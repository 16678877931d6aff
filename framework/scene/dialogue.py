"""A conversation between a user and an assistant, with images and videos that no camera is calibrated for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

ROLES = ("system", "user", "assistant")
"""Who may speak. A system turn is the first one or there is none."""


@dataclass(frozen=True, slots=True)
class Medium:
    """An image, or a video where it has a clip or several frames."""

    frames: tuple[bytes, ...]
    """Encoded images (JPEG or PNG), oldest first; empty where there is a `clip`."""
    times: npt.NDArray[np.floating[Any]]
    """`(frames,)`: each frame's time from the start of the video (s)."""
    width: int
    """Pixels per row."""
    height: int
    """Rows of pixels."""
    clip: bytes | None = None
    """All frames as one encoded video (H.264 or AV1 in MP4); None where there are `frames`."""

    @property
    def is_video(self) -> bool:
        """Whether it has several frames."""
        return len(self.times) > 1


@dataclass(frozen=True, slots=True)
class Turn:
    """What one speaker says at once."""

    role: str
    """One of `ROLES`."""
    parts: tuple[str | int, ...]
    """Texts, and the numbers of media among the dialogue's, in order. Only a user shows media."""

    @property
    def text(self) -> str:
        """The texts alone."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def media(self) -> list[int]:
        """The numbers of the media, in order."""
        return [part for part in self.parts if not isinstance(part, str)]


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A conversation; its last turn is the assistant's."""

    turns: tuple[Turn, ...]
    """The turns, in order."""
    media: tuple[Medium, ...] = ()
    """Images and videos, in the order in which turns show them, each once."""

    @property
    def answers(self) -> list[int]:
        """The numbers of the assistant's turns."""
        return [number for number, turn in enumerate(self.turns) if turn.role == "assistant"]

    def first(self, turns: int) -> Dialogue:
        """Returns the first `turns` turns with their media."""
        kept = self.turns[:turns]
        return replace(self, turns=kept, media=self.media[: sum(len(turn.media) for turn in kept)])
