"""A picture as a model is shown it: upright, 8-bit RGB, no wider than a limit.

Exported folders bring this module along: it uses nothing but numpy and Pillow.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps


class UnknownLevelsError(ValueError):
    """Grey levels that could be of any range."""


def upright_rgb(image: Image.Image) -> Image.Image:
    """`image` with its EXIF orientation applied, as RGB. 16-bit grey levels keep their proportion; alpha is left out.

    Raises `UnknownLevelsError` for levels of 32 bits or floats, and what Pillow does for a damaged file.
    """
    in_16_bits = image.mode.startswith("I;16") or (image.format, image.mode) == ("PPM", "I")  # Pillow's range for PGM
    image = ImageOps.exif_transpose(image)
    if in_16_bits:
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise UnknownLevelsError(
            f"grey levels of mode {image.mode} have no known range; encode the image with 8 or 16 bits"
        )
    return image.convert("RGB")


def shown_size(width: int, height: int, widest: int | None) -> tuple[int, int]:
    """Width and height of a picture once it is scaled down to `widest` pixels; None keeps it."""
    if widest is None or width <= widest:
        return width, height
    return widest, max(1, round(height * widest / width))


def shown_frames(count: int, most: int | None) -> list[int]:
    """Indices of the frames shown of a clip of `count`: at most `most`, evenly spaced up to its newest; None: all."""
    indices: list[int] = np.linspace(count - 1, 0, min(count, most or count)).round().astype(int)[::-1].tolist()
    return indices


def scaled_down(image: Image.Image, widest: int | None) -> Image.Image:
    """`image` no wider than `widest` pixels."""
    size = shown_size(*image.size, widest)
    return image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)
