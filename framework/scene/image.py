"""Camera images as 8-bit RGB, whatever they were encoded as."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

from framework.scene.types import Camera, SceneError

UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises for a damaged image."""
LARGEST_ASPECT = 100.0
"""Longer side over shorter side that is still a picture; image processors refuse 200."""


def read_image(encoded: bytes) -> Image.Image:
    """Decode an image upright (EXIF orientation applied) as RGB; 16-bit grey levels keep their proportion.

    Raises `SceneError` for a damaged image, for grey levels that have no known range, and for one that is more than
    `LARGEST_ASPECT` times as long as it is wide.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(encoded))
        image.load()
        image = ImageOps.exif_transpose(image)
    except UNREADABLE as error:
        raise SceneError(f"unreadable image ({error}); fetch or encode it again") from error
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise SceneError(f"grey levels of mode {image.mode} have no known range; encode the image with 8 or 16 bits")
    if max(image.size) > LARGEST_ASPECT * min(image.size):
        raise SceneError(f"{image.width} x {image.height} pixels: no picture is so long; crop or drop it")
    return image.convert("RGB")


def read_frame(camera: Camera, frame: int) -> Image.Image:
    """A still of `camera`, upright, in RGB. Raises `SceneError` as `read_image` does, and for another size than the
    camera's, since boxes and pixels would disagree.
    """
    try:
        image = read_image(camera.frames[frame])
    except SceneError as error:
        raise SceneError(f"frame {frame}: {error}") from error
    if image.size != (camera.width, camera.height):
        raise SceneError(
            f"frame {frame}: {image.width} x {image.height} pixels upright, the camera has {camera.width} x "
            f"{camera.height}; give the camera the size and intrinsic of its images"
        )
    return image
