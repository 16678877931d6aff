"""Camera images as 8-bit RGB, whatever they were encoded as."""

from __future__ import annotations

import io

from PIL import Image, UnidentifiedImageError

from framework.scene.dialogue import Medium
from framework.scene.still import UnknownLevelsError, upright_rgb
from framework.scene.types import Camera, SceneError

MOST_PIXELS = 1 << 25
"""The largest image, or frame of a clip, (8K) that is decoded: a header may claim more than the machine has memory
for."""
FORMATS = ("JPEG", "PNG", "WEBP", "JPEG2000", "TIFF", "BMP", "PPM", "GIF", "AVIF")
"""What images are encoded as. Pillow's other readers stay shut: that of PostScript runs another program."""
LARGEST_ASPECT = 100.0
"""Longer side over shorter side that is still a picture; image processors refuse 200."""


def read_image(encoded: bytes) -> Image.Image:
    """Decode an image upright (EXIF orientation applied) as RGB; 16-bit grey levels keep their proportion.

    Alpha is left out, and of a JPEG with several pictures all but the first.

    Raises `SceneError` for a damaged image, for grey levels that have no known range, for an animation, for more than
    `MOST_PIXELS` pixels, and for an image that is more than `LARGEST_ASPECT` times as long as it is wide.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        _check_header(image)
        image.load()
        return upright_rgb(image)
    except SceneError:
        raise
    except UnknownLevelsError as error:
        raise SceneError(str(error)) from error
    except UnidentifiedImageError as error:  # whose text has an address of the memory
        raise SceneError(f"unreadable image (none of {', '.join(FORMATS)}); fetch or encode it again") from error
    except Exception as error:  # each of Pillow's readers has its own for damage, of EXIF's too
        reason = f"{type(error).__name__}: {error}".rstrip(": ")
        raise SceneError(f"unreadable image ({reason}); fetch or encode it again") from error


def _check_header(image: Image.Image) -> None:
    """Raises `SceneError` for an image that should not be decoded."""
    size = f"{image.width} x {image.height} pixels"
    if image.width * image.height > MOST_PIXELS:
        raise SceneError(f"{size}, more than {MOST_PIXELS}; scale it down, or encode it again if its header lies")
    if max(image.size) > LARGEST_ASPECT * min(image.size):
        raise SceneError(f"{size}: no picture is so long; crop or drop it")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise SceneError(f"an animation of {frames} frames; give a still, or the frames as a clip")


def read_frame(camera: Camera | Medium, frame: int) -> Image.Image:
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
