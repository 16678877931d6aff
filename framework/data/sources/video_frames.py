"""Single frames of long videos, decoded from the key frame before them and encoded as JPEG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from framework.scene.types import SceneError
from framework.scene.video import STRICT

QUALITY = 95
"""Of the JPEG: what it loses is below what the video's codec lost."""


def read_frames(
    video: Path | IO[bytes], numbers: Sequence[int], name: str, rate_hz: float | None = None
) -> list[bytes]:
    """Returns frames as JPEG. `numbers` count at `rate_hz` from the video's first frame; None takes the video's own
    rate, which must be constant.

    Raises `SceneError`, which calls the video `name`, where it is damaged or ends before a frame.
    """
    import av  # takes a third of a second, and most datasets have images

    try:
        source = str(video) if isinstance(video, Path) else video
        with av.open(source, "r", options=STRICT, metadata_errors="ignore") as container:
            if not container.streams.video:
                raise SceneError(f"{name}: has no video; fetch it again")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            rate = rate_hz or float(stream.average_rate or 0.0)
            if not rate > 0.0:
                raise SceneError(f"{name}: has no rate of frames; fetch it again")
            return [_frame(container, stream, number, rate, name) for number in numbers]
    except FileNotFoundError as error:
        raise SceneError(f"{name}: is missing; fetch it again") from error
    except av.error.FFmpegError as error:
        raise SceneError(f"{name}: unreadable video ({error.strerror}); fetch it again") from error


def _frame(container: Any, stream: Any, number: int, rate: float, name: str) -> bytes:
    start = stream.start_time or 0
    container.seek(start + int(number / rate / stream.time_base), stream=stream)
    for frame in container.decode(stream):
        if frame.pts is None:
            continue
        at = (frame.pts - start) * stream.time_base * rate
        if at > number - 0.5:
            if at >= number + 0.5:
                break
            if frame.is_corrupt:
                raise SceneError(f"{name}: frame {number} is damaged; fetch it again")
            if frame.rotation % 360:
                turned = f"is to be turned by {frame.rotation} degrees, and its calibration is not"
                raise SceneError(f"{name}: {turned}; encode it upright")
            encoded = io.BytesIO()
            frame.to_image(threads=1).save(encoded, format="JPEG", quality=QUALITY)
            return encoded.getvalue()
    raise SceneError(f"{name}: has no frame {number} at {rate:g} Hz: it is cut short; fetch it again")
