"""Images and videos of a conversation that are not what the record says of them are found before they are shown."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from framework.scene.check import check_scene
from framework.scene.dialogue import Dialogue, Medium, Turn
from framework.scene.types import Scene
from framework.scene.video import encode_clip

CLIP = encode_clip([Image.new("RGB", (96, 64))] * 4, 2.0)
VIDEO = Medium((), np.arange(4) / 2, 96, 64, CLIP)


def _scene(medium: Medium) -> Scene:
    turns = (Turn("user", (0, "What is this?")), Turn("assistant", ("A road.",)))
    return Scene(id="a", kind="conversation", dialogue=Dialogue(turns, (medium,)))


def _png() -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (96, 64)).save(written, "PNG")
    return written.getvalue()


def test_sound_media_have_no_problems() -> None:
    assert check_scene(_scene(VIDEO)) == []
    assert check_scene(_scene(Medium((_png(), _png()), np.array([0.0, 0.5]), 96, 64))) == []


@pytest.mark.fault("videos that are not what is said of them")
@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"times": np.arange(3) / 2}, "times: 3 for a clip of 4 frames; give one per frame"),
        ({"times": np.arange(9) / 2}, "times: 9 for a clip of 4 frames; give one per frame"),
        ({"times": np.arange(4) * 5e8}, "times: a frame is beyond 1000000 s; check that times are in seconds"),
        ({"times": np.array([0.0, 1.0, 0.5, 2.0])}, "times: must be finite and ascending"),
        ({"times": np.zeros(0)}, "times: must be finite and ascending"),
        ({"width": 48}, "clip: 96 x 64 pixels, declared 48 x 64; write the record again"),
        ({"clip": CLIP[:200]}, "clip: the clip of 200 bytes is no readable MP4"),
        ({"clip": b""}, "clip: the clip of 0 bytes is no readable MP4"),
    ],
)
def test_a_medium_that_is_not_what_the_record_says_is_named(broken: dict[str, Any], said: str) -> None:
    (problem,) = check_scene(_scene(replace(VIDEO, **broken)))
    assert problem.startswith(f"dialogue.media[0].{said}")
