"""Images as cameras deliver them become upright 8-bit RGB, or are refused with the reason."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from framework.scene.image import read_frame, read_image
from framework.scene.types import Camera, SceneError


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def camera(frame: bytes, width: int, height: int) -> Camera:
    intrinsic = np.array([[90.0, 0, width / 2], [0, 90, height / 2], [0, 0, 1]])
    return Camera("front", (frame,), np.zeros(1), intrinsic, np.eye(4), width, height)


@pytest.mark.fault("grey levels of 16 bits")
def test_sixteen_bit_grey_keeps_its_levels() -> None:
    levels = np.ascontiguousarray(np.broadcast_to(np.linspace(0, 65535, 128).astype(np.uint16), (96, 128)))
    pixels = np.asarray(read_image(encoded(Image.fromarray(levels))))
    assert pixels.shape == (96, 128, 3)
    np.testing.assert_array_equal(pixels[0, :, 0], levels[0] >> 8)


@pytest.mark.fault("grey levels of 16 bits")
def test_sixteen_bit_pgm_keeps_its_levels() -> None:
    levels = np.linspace(0, 65535, 128).astype(">u2")
    pixels = np.asarray(read_image(b"P5 128 2 65535\n" + 2 * levels.tobytes()))
    np.testing.assert_array_equal(pixels[0, :, 0], levels >> 8)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1"])
def test_every_eight_bit_mode_becomes_rgb(mode: str) -> None:
    form = "JPEG" if mode == "CMYK" else "PNG"
    assert read_image(encoded(Image.new(mode, (8, 6)), form)).mode == "RGB"


@pytest.mark.fault("a still of another size, or turned")
def test_a_turned_image_is_read_upright() -> None:
    image, exif = Image.new("RGB", (6, 8)), Image.Exif()
    image.putpixel((0, 7), (255, 255, 255))
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    turned = encoded(image, exif=exif.tobytes())
    found = read_frame(camera(turned, 8, 6), 0)
    assert found.size == (8, 6)
    assert found.getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(SceneError, match=r"frame 0: 8 x 6 pixels upright, the camera has 6 x 8"):
        read_frame(camera(turned, 6, 8), 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "unreadable image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "image .none of JPEG, "),
        (b"\xff\xd8\xff\xe0 no image", "unreadable image"),
        (encoded(Image.new("RGB", (64, 48)), "JPEG")[:200], "unreadable image"),
        (encoded(Image.new("RGB", (4000, 10))), "4000 x 10 pixels: no picture is so long"),
        (encoded(Image.new("F", (8, 8)), "TIFF"), "mode F have no known range"),
    ],
)
def test_what_is_no_picture_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(SceneError, match=message):
        read_image(content)
