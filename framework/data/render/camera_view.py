"""What a prompt shows of a camera: an image, or the frames of a clip with their times."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from framework.scene.types import FloatArray

CLOCK_HZ = 1000
"""Ticks a second of the clock in which the processor is given the times of a clip's frames, as whole numbers."""


class CameraView(NamedTuple):
    """The images of one camera, or of a dialogue's medium, that a prompt shows."""

    images: list[Image.Image]
    """Oldest first."""
    times: FloatArray
    """`(n,)` in s."""

    @property
    def is_clip(self) -> bool:
        """Whether the processor takes it as a video; else as an image."""
        return len(self.images) > 1

    @property
    def metadata(self) -> dict[str, Any]:
        """The times of the frames, for the timestamps in the prompt, which start with the clip.

        They are ticks of a clock rather than frame numbers: a frame rate would be wrong where frames were dropped or
        selected. Without them the processor assumes 24 frames a second.
        """
        ticks = np.round((self.times - self.times[0]) * CLOCK_HZ).astype(np.int64).tolist()
        return {"fps": CLOCK_HZ, "frames_indices": ticks, "total_num_frames": ticks[-1] + 1}
