"""Videos of conversations: what players show is kept, and what is damaged is told by its file."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from framework.data.sources.media import Sampling, load
from framework.data.sources.turns import Reference
from framework.scene.dialogue import Medium
from framework.scene.types import SceneError
from framework.scene.video import decode_clip, encode_clip

ONE, HALF = 1 << 16, 1 << 30
UPRIGHT = (ONE, 0, 0, 0, ONE, 0, 0, 0, HALF)
"""The matrix of a track in MP4 (ISO 14496-12): x' = a x + c y, y' = b x + d y, y down, as a, b, u, c, d, v, x, y, w."""


def _half_bright() -> Image.Image:
    """Dark on the left, bright on the right."""
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:, 48:] = 240
    return Image.fromarray(pixels)


CLIP = encode_clip([_half_bright()] * 12, 10.0)


def _load(folder: Path, content: bytes, name: str = "clip.mp4") -> Medium:
    (folder / name).write_bytes(content)
    return load(Reference("video", name), folder, Sampling(rate_hz=2.0, most=64))


def _turned(*matrix: int) -> bytes:
    place = CLIP.find(struct.pack(">9i", *UPRIGHT))
    return CLIP[:place] + struct.pack(">9i", *matrix) + CLIP[place + 36 :]


@pytest.mark.fault("videos that are not what is said of them")
@pytest.mark.parametrize(
    ("matrix", "bright"),
    [
        (UPRIGHT, "right"),
        ((0, ONE, 0, -ONE, 0, 0, 0, 0, HALF), "bottom"),  # clockwise: the right goes down
        ((-ONE, 0, 0, 0, -ONE, 0, 0, 0, HALF), "left"),
        ((0, -ONE, 0, ONE, 0, 0, 0, 0, HALF), "top"),
    ],
)
def test_a_video_that_players_turn_is_kept_as_they_show_it(
    matrix: tuple[int, ...], bright: str, tmp_path: Path
) -> None:
    medium = _load(tmp_path, _turned(*matrix))
    assert (medium.width, medium.height) == ((96, 64) if bright in ("left", "right") else (64, 96))
    assert medium.clip is not None
    grey = np.asarray(decode_clip(medium.clip)[0].convert("L"), dtype=np.float64)
    halves = {"left": grey[:, :24], "right": grey[:, -24:], "top": grey[:24], "bottom": grey[-24:]}
    assert max(halves, key=lambda side: float(halves[side].mean())) == bright


def test_a_video_that_is_turned_askew_is_refused(tmp_path: Path) -> None:
    half = round(ONE * np.sqrt(0.5))
    with pytest.raises(SceneError, match=r"clip\.mp4: is to be turned by -?45 degrees; turn its pictures"):
        _load(tmp_path, _turned(half, half, 0, -half, half, 0, 0, 0, HALF))


@pytest.fixture(scope="module")
def streamed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A video with its header first, so that the frames up to a cut can be decoded."""
    noise = np.random.default_rng(0).integers(0, 255, (20, 64, 96, 3)).astype(np.uint8)
    path = tmp_path_factory.mktemp("videos") / "streamed.mp4"
    clip = encode_clip([Image.fromarray(frame) for frame in noise], 10.0)
    with av.open(io.BytesIO(clip)) as source, av.open(str(path), "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    return path.read_bytes()


@pytest.mark.fault("videos that are not what is said of them")
@pytest.mark.parametrize("kept", [0.5, 0.8, 0.95])
def test_a_video_cut_short_is_told(kept: float, streamed: bytes, tmp_path: Path) -> None:
    assert len(_load(tmp_path, streamed).times) == 4
    with pytest.raises(SceneError, match=r"clip\.mp4: .*; fetch or encode it again"):
        _load(tmp_path, streamed[: round(len(streamed) * kept)])


def test_a_video_whose_frames_change_their_size_is_told(tmp_path: Path) -> None:
    parts = []
    for size in ((96, 64), (48, 32)):
        written = io.BytesIO()
        with av.open(written, "w", format="h264") as container:
            stream = container.add_stream("libx264", 10)
            (stream.width, stream.height), stream.pix_fmt = size, "yuv420p"
            for _ in range(12):
                container.mux(stream.encode(av.VideoFrame.from_image(Image.new("RGB", size))))
            container.mux(stream.encode(None))
        parts.append(written.getvalue())
    with pytest.raises(SceneError, match=r"clip\.h264: "):
        _load(tmp_path, b"".join(parts), "clip.h264")


@pytest.mark.parametrize("content", [b"", b"hello", b"\0" * 4096, CLIP[:40], CLIP[: len(CLIP) // 2]])
def test_what_is_no_video_is_told(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(SceneError, match=r"clip\.mp4: "):
        _load(tmp_path, content)
