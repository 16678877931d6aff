"""What is wrong with a camera, and with where a sensor is mounted."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from framework.scene.frames import is_rigid
from framework.scene.lens import check_lens
from framework.scene.text import is_blank
from framework.scene.types import Camera, FloatArray, SceneError
from framework.scene.video import read_header

JPEG, PNG = b"\xff\xd8", b"\x89PNG"
OLDEST_S = 3600.0
"""Frames older (s) than this are of another drive, or their times in another unit."""
FARTHEST_SENSOR = 100.0
"""Sensors (m) beyond this are on no vehicle."""


def camera_problems(camera: Camera, field: str) -> Iterator[str]:
    """The problems of `camera`, each beginning with `field` and its name and ending with the remedy."""
    field = f"{field} ({camera.name})"
    if is_blank(camera.name):
        yield f"{field}.name: is empty; give the camera a name"
    if camera.clip is not None:
        yield from _clip(camera, camera.clip, field)
    elif not camera.frames:
        yield f"{field}.frames: there are none; drop the camera or give at least one image"
    for index, frame in enumerate(camera.frames):
        if not frame.startswith((JPEG, PNG)):
            yield f"{field}.frames[{index}]: is neither JPEG nor PNG; encode the image again"
    times = np.asarray(camera.times)
    if camera.clip is None and times.shape != (len(camera.frames),):
        yield f"{field}.times: shape {times.shape} for {len(camera.frames)} frames; give one time per frame"
    elif not np.isfinite(times).all() or np.any(np.diff(np.ravel(times)) <= 0.0) or np.any(times > 1e-6):
        yield f"{field}.times: must be finite, ascending, at most 0 (now); sort the frames, oldest first"
    elif (times < -OLDEST_S).any():
        yield f"{field}.times: a frame is older than {OLDEST_S:.0f} s; check that times are in seconds"
    intrinsic = np.asarray(camera.intrinsic)
    if intrinsic.shape != (3, 3):
        yield f"{field}.intrinsic: shape {intrinsic.shape}, not (3, 3); give the pinhole matrix in pixels"
    elif not np.isfinite(intrinsic).all() or intrinsic[0, 0] <= 0.0 or intrinsic[1, 1] <= 0.0:
        yield f"{field}.intrinsic: focal lengths must be finite and positive; check the calibration"
    elif any(abs(value) > 1e-5 for value in (intrinsic[1, 0], *intrinsic[2, :2], intrinsic[2, 2] - 1.0)):
        yield f"{field}.intrinsic: is no pinhole matrix, whose last row is 0, 0, 1; check the calibration"
    elif not (0.0 < intrinsic[0, 2] < camera.width and 0.0 < intrinsic[1, 2] < camera.height):
        yield (
            f"{field}.intrinsic: principal point ({intrinsic[0, 2]:.1f}, {intrinsic[1, 2]:.1f}) is outside the image "
            f"of {camera.width} x {camera.height}; scale the intrinsic with the image"
        )
    if camera.lens is not None and (problem := check_lens(camera.lens)):
        yield f"{field}.lens: {problem}"
    yield from extrinsic_problems(camera.extrinsic, f"{field}.extrinsic")


def _clip(camera: Camera, clip: bytes, field: str) -> Iterator[str]:
    """By the clip's header; whether its pictures can be decoded is seen when they are."""
    if camera.frames:
        yield f"{field}.clip: there are {len(camera.frames)} frames in addition to it; give one or the other"
    try:
        header = read_header(clip)
    except SceneError as error:
        yield f"{field}.clip: {error}"
        return
    if np.shape(camera.times) != (header.frames,):
        yield f"{field}.times: shape {np.shape(camera.times)} for a clip of {header.frames} frames; give one per frame"
    if (header.width, header.height) != (camera.width, camera.height):
        yield (
            f"{field}.clip: {header.width} x {header.height} pixels, the camera {camera.width} x {camera.height}; "
            "scale the intrinsic with the clip"
        )


def extrinsic_problems(extrinsic: FloatArray, field: str) -> Iterator[str]:
    """The problems of a sensor's pose on the vehicle."""
    if np.shape(extrinsic) != (4, 4):
        yield f"{field}: shape {np.shape(extrinsic)}, not (4, 4); give the transform from sensor to ego"
    elif not is_rigid(np.asarray(extrinsic)):
        yield f"{field}: is not a rotation with a translation; check the calibration"
    elif (np.abs(extrinsic[:3, 3]) > FARTHEST_SENSOR).any():
        yield f"{field}: the sensor is farther than {FARTHEST_SENSOR:.0f} m from the ego; check the unit"
