"""Cameras of recordings, checked where the file of their calibration is known: a wrong one costs itself alone."""

from __future__ import annotations

from framework.scene.check_camera import camera_problems, extrinsic_problems
from framework.scene.types import Camera, FloatArray, SceneError


def checked(camera: Camera, source: str) -> Camera:
    """Returns a camera. Raises `SceneError` with `source`, its calibration's file, for what `check_scene` would refuse
    the whole scene for, such as the calibration of another rig.
    """
    for problem in camera_problems(camera, source):
        raise SceneError(problem)
    return camera


def checked_mount(extrinsic: FloatArray, source: str) -> FloatArray:
    """Returns where a sensor is on its vehicle, `(4, 4)`. Raises `SceneError` as `checked` does."""
    for problem in extrinsic_problems(extrinsic, source):
        raise SceneError(problem)
    return extrinsic
