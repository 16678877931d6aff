"""A conversation between a user and an assistant, with images and videos that no camera is calibrated for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from framework.scene.text import is_blank, is_unicode

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


def dialogue_problems(dialogue: Dialogue) -> Iterator[str]:
    """Yields what is wrong with a dialogue, each with the field and the remedy."""
    turns = dialogue.turns
    for index, turn in enumerate(turns):
        yield from _turn_problems(turn, index)
    if not turns or turns[-1].role != "assistant":
        yield "dialogue.turns: the last one is not the assistant's; there is nothing to learn after it: drop it"
    elif not any(turn.role == "user" for turn in turns[: dialogue.answers[0]]):
        yield f"dialogue.turns[{dialogue.answers[0]}]: answers before a user has spoken; give the question first"
    shown = [part for turn in turns for part in turn.media]
    if shown != list(range(len(dialogue.media))):
        yield f"dialogue.turns: show media {shown}, there are {len(dialogue.media)}; show each once, in order"
    for index, medium in enumerate(dialogue.media):
        yield from _medium_problems(medium, f"dialogue.media[{index}]")


def _turn_problems(turn: Turn, index: int) -> Iterator[str]:
    field = f"dialogue.turns[{index}]"
    if turn.role not in ROLES:
        yield f"{field}.role: {turn.role!r} is unknown; use one of {', '.join(ROLES)}"
    if any(isinstance(part, bool) or not isinstance(part, str | int) for part in turn.parts):
        yield f"{field}.parts: hold something other than texts and numbers of media; write the record again"
    elif not is_unicode(turn.text):
        yield f"{field}.parts: hold half of a character (a lone surrogate), which UTF-8 cannot write; mend the text"
    elif turn.role == "system" and index:
        yield f"{field}: a system prompt after the first turn; chat templates drop it: merge it with the first"
    elif turn.role != "user" and turn.media:
        yield f"{field}.parts: the {turn.role} shows media; only a user may: move them to a user's turn"
    elif turn.role == "assistant" and is_blank(turn.text):
        yield f"{field}: the answer is empty, or of characters that show nothing; fill it or drop the turn"
    elif turn.role == "user" and is_blank(turn.text) and not turn.media:
        yield f"{field}: the user says nothing, or what nobody sees; fill the turn or drop it with its answer"


def _medium_problems(medium: Medium, field: str) -> Iterator[str]:
    for side, pixels in (("width", medium.width), ("height", medium.height)):
        if isinstance(pixels, bool) or not isinstance(pixels, int | np.integer) or pixels < 1:
            yield f"{field}.{side}: {pixels!r} is no number of pixels; write the record again"
    times = np.asarray(medium.times)
    if (medium.clip is None) == (not medium.frames):
        yield f"{field}: has {'neither frames nor' if medium.clip is None else 'both frames and'} a clip; give one"
    elif times.ndim != 1 or times.dtype.kind not in "fiu" or (medium.clip is None and len(times) != len(medium.frames)):
        yield f"{field}.times: shape {times.shape} for {len(medium.frames)} frames; give one time per frame"
    elif not len(times) or not np.isfinite(times).all() or (np.diff(times) <= 0.0).any():
        yield f"{field}.times: must be finite and ascending; sort the frames, oldest first"
