"""Encoded images of recordings, checked when they are converted without decoding their pixels."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from framework.scene.image import FORMATS
from framework.scene.types import SceneError

ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
"""Last bytes of a whole file by Pillow's name of its format."""


def read_image(path: Path, width: int, height: int) -> bytes:
    """Returns an encoded image. Raises `SceneError` for one that is empty, cut short or not of `width` x `height`
    pixels, as its description says; whether its pixels can be decoded is seen when they are.
    """
    return check_image(path.read_bytes(), width, height, str(path))


def check_image(encoded: bytes, width: int, height: int, source: str) -> bytes:
    """Returns an encoded image of `source`; see `read_image`."""
    size = _size_of(encoded, source)
    if size != (width, height):
        calibrated = f"{width} x {height}"
        raise SceneError(
            f"{source}: {size[0]} x {size[1]} pixels, calibrated for {calibrated}; restore the file from the dataset"
        )
    return encoded


def open_image(path: Path) -> tuple[bytes, tuple[int, int]]:
    """Returns an encoded image, its width and its height. Raises `SceneError` for one that is empty or cut short."""
    encoded = path.read_bytes()
    return encoded, _size_of(encoded, str(path))


def _size_of(encoded: bytes, source: str) -> tuple[int, int]:
    if not encoded:
        raise SceneError(f"{source}: has no bytes; fetch it again")
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            size, form = image.size, image.format
    except Exception as error:  # each of Pillow's readers has its own for damage
        raise SceneError(f"{source}: is no image; fetch it again") from error
    if form in ENDS and not encoded.rstrip(b"\0").endswith(ENDS[form]):
        raise SceneError(f"{source}: is cut short; fetch it again")
    return size
