"""What is wrong with a conversation, and with the images and videos that it shows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from framework.scene.dialogue import ROLES, Dialogue, Medium, Turn
from framework.scene.text import is_blank, is_unicode
from framework.scene.types import SceneError
from framework.scene.video import read_header

LONGEST_S = 1e6
"""Times (s) of frames beyond this are in another unit: no video lasts eleven days."""


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
    elif (np.abs(times) > LONGEST_S).any():
        yield f"{field}.times: a frame is beyond {LONGEST_S:.0f} s; check that times are in seconds"
    elif medium.clip is not None:
        yield from _clip_problems(medium, medium.clip, field)


def _clip_problems(medium: Medium, clip: bytes, field: str) -> Iterator[str]:
    """By the clip's header; whether its pictures can be decoded is seen when they are."""
    try:
        header = read_header(clip)
    except SceneError as error:
        yield f"{field}.clip: {error}"
        return
    if len(medium.times) != header.frames:
        yield f"{field}.times: {len(medium.times)} for a clip of {header.frames} frames; give one per frame"
    if (header.width, header.height) != (medium.width, medium.height):
        declared = f"{medium.width} x {medium.height}"
        yield f"{field}.clip: {header.width} x {header.height} pixels, declared {declared}; write the record again"
