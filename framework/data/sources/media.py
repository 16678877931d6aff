"""Images and videos of conversations, from files, bytes and data URLs."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes, urlparse

import numpy as np
from PIL import Image

from framework.data.sources.turns import Reference
from framework.scene.check_camera import JPEG, PNG
from framework.scene.dialogue import Medium
from framework.scene.image import MOST_PIXELS, read_image
from framework.scene.types import SceneError
from framework.scene.video import STRICT, encode_clip

TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
"""How Pillow turns an image counter-clockwise, by degrees."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which frames of a video are kept."""

    rate_hz: float
    """Frames a second; those of a list of images are taken to have this rate."""
    most: int
    """Frames of a video; longer ones have fewer a second."""


def load(reference: Reference, folder: Path, sampling: Sampling) -> Medium:
    """Returns the image or video of a reference whose path is relative to `folder`.

    JPEG and PNG are kept as they are; other images are written as PNG, videos as H.264 of the frames that are kept.
    Raises `SceneError` naming the file for one that is missing or cannot be read, and for a remote one.
    """
    if reference.kind == "image":
        return _image(reference.value, folder)
    if isinstance(reference.value, list):
        return _of_frames([_image(value, folder) for value in reference.value], sampling)
    return _video(reference.value, folder, sampling)


def _image(value: Any, folder: Path) -> Medium:
    encoded = _read(value, folder)
    try:
        image = read_image(encoded)
    except SceneError as error:
        raise SceneError(f"{_name(value)}: {error}") from error
    if not encoded.startswith((JPEG, PNG)):
        written = io.BytesIO()
        image.save(written, format="PNG")
        encoded = written.getvalue()
    return Medium((encoded,), np.zeros(1), image.width, image.height)


def _of_frames(images: list[Medium], sampling: Sampling) -> Medium:
    sizes = {(image.width, image.height) for image in images}
    if len(sizes) != 1:
        raise SceneError(f"video: its frames are of {sorted(sizes) or 'no'} pixels; give frames of one size")
    kept = _spread(len(images), sampling.most)
    ((width, height),) = sizes
    return Medium(tuple(images[i].frames[0] for i in kept), np.array(kept) / sampling.rate_hz, width, height)


def _video(value: Any, folder: Path, sampling: Sampling) -> Medium:
    import av  # takes a third of a second, and most conversations have no video

    try:
        encoded = _read(value, folder)
        with av.open(io.BytesIO(encoded), "r", options=STRICT, metadata_errors="ignore") as container:
            if not container.streams.video:
                raise SceneError(f"{_name(value)}: has no video; fetch or encode it again")
            stream = container.streams.video[0]
            if max((entry.pos + entry.size for entry in stream.index_entries), default=0) > len(encoded):
                raise SceneError(f"{_name(value)}: is cut short; fetch or encode it again")
            if stream.width * stream.height > MOST_PIXELS:
                raise SceneError(f"{_name(value)}: {stream.width} x {stream.height} pixels; scale it down")
            stream.codec_context.options = STRICT
            times, images = _frames(container.decode(stream), sampling, _name(value))
    except av.error.FFmpegError as error:
        raise SceneError(f"{_name(value)}: unreadable video ({error.strerror}); fetch or encode it again") from error
    if not images:
        raise SceneError(f"{_name(value)}: has no frame; fetch or encode it again")
    width, height = images[0].size
    try:
        clip = encode_clip(images, sampling.rate_hz)
    except SceneError as error:
        raise SceneError(f"{_name(value)}: {error}") from error
    return Medium((), np.array(times) - times[0], width, height, clip)


def _frames(decoded: Any, sampling: Sampling, name: str) -> tuple[list[float], list[Image.Image]]:
    """Returns the times (s) and images of the frames that are kept, upright. Holds at most twice as many. Raises
    `SceneError`, which calls the video `name`, where a frame is damaged.
    """
    times, images = list[float](), list[Image.Image]()
    interval, due = 1.0 / sampling.rate_hz, -np.inf
    for frame in decoded:
        if frame.is_corrupt:
            raise SceneError(f"{name}: the frame at {frame.time} s is damaged; fetch or encode it again")
        if frame.time is None or frame.time < due:
            continue
        due = max(due + interval, frame.time + interval / 2) if times else frame.time + interval
        size = {"width": frame.width + frame.width % 2, "height": frame.height + frame.height % 2}
        times.append(float(frame.time))
        images.append(_upright(frame.to_image(**size), frame.rotation, name))
        if len(times) == 2 * sampling.most:
            times, images, interval = times[::2], images[::2], 2 * interval
    kept = _spread(len(times), sampling.most)
    return [times[i] for i in kept], [images[i] for i in kept]


def _upright(image: Image.Image, degrees: int, name: str) -> Image.Image:
    """Returns a frame as players show it: turned counter-clockwise by what its video says, as phones film."""
    if degrees % 360 == 0:
        return image
    if degrees % 360 not in TURNS:
        raise SceneError(f"{name}: is to be turned by {degrees} degrees; turn its pictures and encode it again")
    return image.transpose(TURNS[degrees % 360])


def _spread(count: int, most: int) -> list[int]:
    return np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()


def _read(value: Any, folder: Path) -> bytes:
    if isinstance(value, Mapping):
        value = next((value[key] for key in ("bytes", "path") if value.get(key) is not None), None)
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    if not isinstance(value, str):
        raise SceneError(f"media: is a {type(value).__name__}, not a path, a data URL or bytes")
    if value.startswith("data:"):
        return _data_url(value)
    try:
        address = urlparse(value)
    except ValueError as error:
        raise SceneError(f"{_name(value)}: is no address ({error}); give the path of the file") from error
    if address.scheme in ("http", "https", "s3", "gs", "hf"):
        raise SceneError(f"{value}: is remote; download it and give its path")
    path = Path(unquote(address.path)) if address.scheme == "file" else folder / value
    try:
        if path.exists() and not path.is_file():
            raise SceneError(f"{path}: is no file; name an image or video")
        return path.read_bytes()
    except SceneError:
        raise
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SceneError(f"{path}: {reason}; lay it there, or give `media` the folder that paths start from") from error


def _data_url(value: str) -> bytes:
    head, _, payload = value.partition(",")
    try:
        return base64.b64decode(payload, validate=True) if head.endswith(";base64") else unquote_to_bytes(payload)
    except ValueError as error:
        raise SceneError(f"{_name(value)}: no base64 ({error}); write the data URL again") from error


def _name(value: Any) -> str:
    """Returns how messages name a medium."""
    if isinstance(value, Mapping):
        value = value.get("path") or b""
    return f"{value[:60]}" if isinstance(value, str) else "an image or video in bytes"
