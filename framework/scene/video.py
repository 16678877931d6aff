"""Clips of a camera as encoded video: H.264 or AV1 in MP4, one clip a file in memory.

The decoder is PyAV. Its wheels carry their own FFmpeg (libx264, dav1d), so that it needs neither a system FFmpeg nor a
certain torch; torchcodec needs both, and the machines that train differ in both. It decodes in the DataLoader's
workers on one thread each: the workers are the parallelism.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

from PIL import Image

from framework.scene.image import LARGEST_ASPECT, MOST_PIXELS
from framework.scene.still import shown_size
from framework.scene.types import SceneError

BT709, BT601, LIMITED = 1, 6, 1
"""The colours' matrices and range as H.264 numbers them; said in the clip, so that every decoder agrees."""
MATRICES = {BT709: "ITU709", BT601: "ITU601"}
"""The scaler's names of the matrices."""
STRICT = {"err_detect": "explode", "max_pixels": str(MOST_PIXELS)}
"""Errors in the stream are raised; those that the decoder conceals all the same, it marks on the frame."""
QUALITY = {"crf": "18", "mbtree": "0"}
"""Of encoding: nearly transparent. Without libx264's macroblock tree, whose choices hang on what lay in the memory
before: the same images are to make the same bytes.
"""


@dataclass(frozen=True, slots=True)
class ClipHeader:
    """What a clip's container says of it: how many frames, and their size in pixels."""

    frames: int
    width: int
    height: int


def read_header(clip: bytes) -> ClipHeader:
    """The header of a clip; at most its first frame is decoded for it. Raises `SceneError` as `decode_clip` does."""
    with _opened(clip) as (_, stream):
        return ClipHeader(stream.frames, stream.width, stream.height)


def decode_clip(clip: bytes, width: int | None = None, frames: Sequence[int] | None = None) -> list[Image.Image]:
    """The clip's images (RGB), oldest first: all of them, or those at the ascending indices `frames`.

    Images wider than `width` pixels are scaled down to it by the decoder's own scaler, in the pass that converts the
    colours. Raises `SceneError` with the fault and the remedy when the clip is cut short, damaged or has not got the
    frames. The codecs have no checksums: of changed bytes one in ten (H.264) or five (AV1) only makes a wrong picture.
    That bytes are those that were written is for the shard's hash to say.
    """
    with _opened(clip) as (container, stream):
        wanted = range(stream.frames) if frames is None else frames
        if not wanted:
            return []
        size = dict(zip(("width", "height"), shown_size(stream.width, stream.height, width), strict=True))
        images = {}
        for index, frame in enumerate(container.decode(stream)):
            if frame.is_corrupt or (frame.width, frame.height) != (stream.width, stream.height):
                raise SceneError(f"frame {index} of the clip is damaged; fetch or encode the clip again")
            if frame.rotation % 360:
                raise SceneError(
                    f"the clip is to be turned by {frame.rotation} degrees; turn its pictures and encode it again"
                )
            if index in wanted:
                images[index] = frame.to_image(**size, interpolation="BILINEAR", threads=1)
            if index >= wanted[-1]:
                break
        if len(images) < len(wanted):
            raise SceneError(
                f"the clip has {len(images)} of the {len(wanted)} frames wanted, its header counts {stream.frames}: it "
                "is cut short or damaged; fetch or encode it again"
            )
        return [images[index] for index in wanted]


def encode_clip(images: Sequence[Image.Image], rate_hz: float) -> bytes:
    """An H.264 clip in MP4 of `images`, oldest first, all of one even width and height, `rate_hz` a second.

    Raises `SceneError` when there is no image or their sizes are uneven or differ.
    """
    sizes = {image.size for image in images}
    if len(sizes) != 1 or any(side % 2 for size in sizes for side in size):
        raise SceneError(f"no clip can be made of images of {sorted(sizes)} pixels; give one even width and height")
    encoded = io.BytesIO()
    write_clip(encoded, images, sizes.pop(), rate_hz)
    return encoded.getvalue()


def write_clip(
    target: Path | IO[bytes],
    images: Iterable[Image.Image],
    size: tuple[int, int],
    rate_hz: float,
    key_every: int | None = None,
    matrix: int = BT709,
) -> None:
    """Writes an H.264 clip in MP4 of `images`, oldest first, all of the even `size`: width and height. They are taken
    one at a time. One in `key_every` frames is a key frame, from which decoding can start; None leaves them to the
    encoder. Decoders that do not read the `matrix` of the colours take it for BT.601.
    """
    import av

    options = QUALITY if key_every is None else {**QUALITY, "g": str(key_every)}
    with av.open(str(target) if isinstance(target, Path) else target, "w", format="mp4") as container:
        stream = container.add_stream("libx264", Fraction(rate_hz).limit_denominator(1000), options=options)
        (stream.width, stream.height), stream.pix_fmt, stream.thread_count = size, "yuv420p", 1
        stream.colorspace, stream.color_range, stream.color_primaries, stream.color_trc = matrix, LIMITED, BT709, BT709
        for image in images:
            frame = av.VideoFrame.from_image(image.convert("RGB"))
            colours = {"dst_colorspace": MATRICES[matrix], "dst_color_range": "MPEG"}
            container.mux(stream.encode(frame.reformat(format="yuv420p", **colours, threads=1)))
        container.mux(stream.encode(None))


@contextmanager
def _opened(clip: bytes) -> Iterator[tuple[Any, Any]]:
    """A clip's container and its video stream, ready to be decoded; what goes wrong inside becomes a `SceneError`."""
    import av  # takes a third of a second, and most scenes have no clip

    try:
        with av.open(io.BytesIO(clip), "r", format="mp4", options=STRICT, metadata_errors="ignore") as container:
            stream = container.streams.best("video")
            if stream is None or not stream.frames:
                raise SceneError("the clip's header counts no frames of video; write it as plain, unfragmented MP4")
            if stream.codec_context is None:
                raise SceneError("the clip's codec is unknown; encode it as H.264 or AV1")
            size = f"{stream.width} x {stream.height} pixels"
            if stream.width * stream.height > MOST_PIXELS:
                raise SceneError(f"the clip's header claims {size}; encode it again")
            if max(stream.width, stream.height) > LARGEST_ASPECT * min(stream.width, stream.height):
                raise SceneError(f"the clip has {size}: no picture is so long; crop or drop it")
            stream.codec_context.options = STRICT
            stream.codec_context.thread_count = 1
            yield container, stream
    except av.error.FFmpegError as error:
        raise SceneError(
            f"the clip of {len(clip)} bytes is no readable MP4 ({error.strerror}): it is cut short or damaged; "
            "fetch or encode it again"
        ) from error
