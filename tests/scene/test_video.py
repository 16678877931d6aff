"""Clips: what is encoded is seen again, scaled on the way, and damage is an error with a remedy, never a crash."""

from __future__ import annotations

import io
import random
import struct

import av
import numpy as np
import pytest
from PIL import Image

from framework.scene.check import check_scene
from framework.scene.picture import draw_on_camera
from framework.scene.types import SceneError
from framework.scene.video import ClipHeader, decode_clip, encode_clip, read_header
from framework.scene.world.generate import generate_scene

WIDTH, HEIGHT, FRAMES = 96, 64, 7


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    """A red square on blue that moves ten pixels to the right a frame."""
    frames = []
    for step in range(FRAMES):
        pixels = np.full((HEIGHT, WIDTH, 3), (30, 60, 190), np.uint8)
        pixels[20:40, 10 + 10 * step : 30 + 10 * step] = (200, 40, 40)
        frames.append(Image.fromarray(pixels))
    return frames


@pytest.fixture(scope="module")
def clip(images: list[Image.Image]) -> bytes:
    return encode_clip(images, 10.0)


def _psnr(one: Image.Image, other: Image.Image) -> float:
    error = float(np.mean((np.asarray(one, np.float64) - np.asarray(other, np.float64)) ** 2))
    return float(10.0 * np.log10(255.0**2 / max(error, 1e-9)))


def test_what_is_encoded_is_seen_again(images: list[Image.Image], clip: bytes) -> None:
    assert read_header(clip) == ClipHeader(FRAMES, WIDTH, HEIGHT)
    decoded = decode_clip(clip)
    assert len(decoded) == FRAMES
    assert min(map(_psnr, images, decoded)) > 32.0, "chroma has half the resolution, colours are not shifted"
    assert np.asarray(decoded[3])[5, 5] == pytest.approx((30, 60, 190), abs=3)


def test_images_are_scaled_down_never_up(images: list[Image.Image], clip: bytes) -> None:
    small = decode_clip(clip, width=48)
    assert {image.size for image in small} == {(48, 32)}
    expected = [image.resize((48, 32), Image.Resampling.BILINEAR) for image in images]
    assert min(map(_psnr, expected, small)) > 28.0
    assert decode_clip(clip, width=500)[0].size == (WIDTH, HEIGHT)


def test_the_frames_that_are_asked_for_come(clip: bytes) -> None:
    whole = decode_clip(clip)
    assert [image.tobytes() for image in decode_clip(clip, frames=[0, 4, 6])] == [whole[i].tobytes() for i in (0, 4, 6)]
    assert decode_clip(clip, frames=[]) == []
    with pytest.raises(SceneError, match=r"1 of the 2 frames wanted, its header counts 7"):
        decode_clip(clip, frames=[6, 7])


def test_av1_is_decoded(images: list[Image.Image]) -> None:
    encoded = io.BytesIO()
    with av.open(encoded, "w", format="mp4") as container:
        stream = container.add_stream("libsvtav1", 10)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode(None))
    decoded = decode_clip(encoded.getvalue())
    assert len(decoded) == FRAMES
    assert min(map(_psnr, images, decoded)) > 25.0


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9])
def test_a_clip_cut_short_is_refused(clip: bytes, kept: float) -> None:
    with pytest.raises(SceneError, match="fetch or encode it again"):
        decode_clip(clip[: int(kept * len(clip))])


@pytest.mark.fault("a still of another size, or turned")
def test_a_clip_that_players_turn_is_refused(images: list[Image.Image], clip: bytes) -> None:
    """By the matrix in its track's header, as telephones write it: 36 bytes, 40 after the box's name."""
    place = clip.index(b"tkhd") + 44
    one, half = 1 << 16, 1 << 30
    assert struct.unpack_from(">9i", clip, place) == (one, 0, 0, 0, one, 0, 0, 0, half)
    turned = clip[:place] + struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, half) + clip[place + 36 :]
    with pytest.raises(SceneError, match=r"to be turned by -?90 degrees; turn its pictures"):
        decode_clip(turned)


@pytest.mark.fault("a picture that is none")
def test_a_clip_that_is_no_picture_is_refused() -> None:
    with pytest.raises(SceneError, match="4000 x 16 pixels: no picture is so long"):
        decode_clip(encode_clip([Image.new("RGB", (4000, 16))], 10.0))


def test_a_damaged_clip_is_refused_or_decoded_whole(clip: bytes) -> None:
    """One changed byte may be a tag's, or change a picture without breaking the stream; thirty are always noticed."""
    draw, refused = random.Random(0), {1: 0, 30: 0}
    for changes in refused:
        for _ in range(40):
            damaged = bytearray(clip)
            for place in draw.sample(range(len(clip)), changes):
                damaged[place] ^= draw.randrange(1, 256)
            try:
                assert len(decode_clip(bytes(damaged))) == FRAMES
            except SceneError:
                refused[changes] += 1
    assert refused[1] > 10
    assert refused[30] == 40


@pytest.mark.parametrize("sizes", [[], [(96, 64), (96, 62)], [(95, 64)]])
def test_images_that_make_no_clip_are_refused(sizes: list[tuple[int, int]]) -> None:
    with pytest.raises(SceneError, match="one even width and height"):
        encode_clip([Image.new("RGB", size) for size in sizes], 10.0)


def test_clips_of_the_built_in_world_end_with_its_still() -> None:
    still, filmed = generate_scene(3, "cut_in"), generate_scene(3, "cut_in", camera_frames=5)
    assert check_scene(filmed) == []
    for before, after in zip(still.cameras, filmed.cameras, strict=True):
        assert after.clip is not None
        assert after.times.tolist() == [-1.0, -0.75, -0.5, -0.25, 0.0]
        *earlier, newest = decode_clip(after.clip)
        image = Image.open(io.BytesIO(before.frames[0]))
        assert _psnr(newest, image) > 30.0 > _psnr(earlier[0], image)
        drawn = Image.open(io.BytesIO(draw_on_camera(after, width=after.width)))
        assert _psnr(newest, drawn) > 28.0
    with pytest.raises(SceneError, match="no clips of 8 frames: choose 1 to 7"):
        generate_scene(3, camera_frames=8)
