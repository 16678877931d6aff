"""Scenes as a recording for the Rerun viewer: cameras with boxes and path, LiDAR, boxes, and the ego over time.

Two timelines: `record` counts the scenes, `time` lays them one after the other, so that the ego's states before and
after each scene's moment move along it.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from framework.evaluation.scene_view import ANNOTATED, DETECTED, EXPERT
from framework.run.files import replacing
from framework.scene.check_camera import JPEG
from framework.scene.frames import apply
from framework.scene.picture import box_segments, path_segments, visible_segments
from framework.scene.types import Boxes, Camera, FloatArray, Scene, Trajectory
from framework.scene.video import decode_clip

PAST_S, SPAN_S = 5.0, 15.0
"""Seconds from a scene's place on the timeline to its moment, and to the next scene's place."""
PAST_COLOUR = "#94a3b8"


def is_installed() -> bool:
    """Whether the extra `rerun` is."""
    return importlib.util.find_spec("rerun") is not None


def write_recording(path: Path, name: str, scenes: Iterable[Scene]) -> None:
    """Write the recording of `scenes` to `path`. Raises `ModuleNotFoundError` without the extra `rerun`."""
    import rerun

    rerun.set_strict_mode(True)  # else what cannot be logged is left out with a warning
    with replacing(path, durable=False) as fresh:
        recording = rerun.RecordingStream(name)
        recording.save(fresh)
        recording.log("world", rerun.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
        for number, scene in enumerate(scenes):
            moment = number * SPAN_S + PAST_S
            recording.set_time("record", sequence=number)
            recording.set_time("time", duration=moment)
            recording.log("world", rerun.Clear(recursive=True))  # what the last scene had and this one lacks
            recording.log("facts", rerun.TextDocument(_facts(scene)))
            for camera in scene.cameras:
                _log_camera(rerun, recording, camera, scene)
            _log_world(rerun, recording, scene)
            recording.disable_timeline("record")
            for trajectory, start in ((scene.history, None), (scene.future, 1)):
                if trajectory is not None:
                    _log_states(rerun, recording, trajectory, moment, start)
        recording.flush()
        recording.disconnect()


def _facts(scene: Scene) -> str:
    origin = ", ".join(f"{name} {value}" for name, value in scene.provenance.items() if name in ("dataset", "log"))
    return f"{scene.id}: {scene.kind}, command {scene.command}; {origin}"


def _log_world(rerun: Any, recording: Any, scene: Scene) -> None:
    """Log what lies in the ego frame: points, boxes, paths."""
    for name, sensor in (("lidar", scene.lidar), ("radar", scene.radar)):
        if sensor is not None:
            rows = sensor.points if name == "lidar" else sensor.returns  # type: ignore[union-attr]
            recording.log(f"world/{name}", rerun.Points3D(apply(sensor.extrinsic, rows[:, :3].astype(np.float64))))
    for name, boxes, colour in (("boxes", scene.boxes, ANNOTATED), ("perception", scene.perception, DETECTED)):
        if boxes is not None and len(boxes):
            recording.log(f"world/{name}", _boxes(rerun, boxes, colour))
    for name, trajectory, colour in (("past", scene.history, PAST_COLOUR), ("path", scene.future, EXPERT)):
        if trajectory is not None:
            line = np.c_[trajectory.states[:, :2], np.zeros(len(trajectory.states))]
            recording.log(f"world/{name}", rerun.LineStrips3D([line], colors=[_rgb(colour)]))


def _boxes(rerun: Any, boxes: Boxes, colour: str) -> Any:
    values = np.asarray(boxes.values, dtype=np.float64)
    half = values[:, 6] / 2
    turns = np.c_[np.zeros((len(values), 2)), np.sin(half), np.cos(half)]  # x, y, z, w
    return rerun.Boxes3D(
        centers=values[:, :3],
        half_sizes=values[:, 3:6] / 2,
        quaternions=turns,
        labels=list(boxes.labels),
        colors=[_rgb(colour)],
    )


def _log_camera(rerun: Any, recording: Any, camera: Camera, scene: Scene) -> None:
    """Log a camera's place, its newest image, and on it the boxes and the path as lines, which its lens bends."""
    extrinsic = np.asarray(camera.extrinsic)
    recording.log(["world", camera.name], rerun.Transform3D(translation=extrinsic[:3, 3], mat3x3=extrinsic[:3, :3]))
    recording.log(
        ["world", camera.name],
        rerun.Pinhole(
            image_from_camera=camera.intrinsic,
            width=camera.width,
            height=camera.height,
            camera_xyz=rerun.ViewCoordinates.RDF,
        ),
    )
    image = _newest(camera)
    kind = "image/jpeg" if image.startswith(JPEG) else "image/png"
    recording.log(["world", camera.name, "image"], rerun.EncodedImage(contents=image, media_type=kind))
    lines: list[tuple[str, FloatArray, str]] = []
    for name, boxes, colour in (("boxes", scene.boxes, ANNOTATED), ("perception", scene.perception, DETECTED)):
        if boxes is not None:
            lines.append((name, box_segments(boxes), colour))
    if scene.future is not None:
        lines.append(("path", path_segments(scene.future.states), EXPERT))
    for name, segments, colour in lines:
        seen = visible_segments(camera, segments)
        if len(seen):
            recording.log(["world", camera.name, name], rerun.LineStrips2D(seen, colors=[_rgb(colour)]))


def _newest(camera: Camera) -> bytes:
    if camera.clip is None:
        return camera.frames[-1]
    encoded = io.BytesIO()
    decode_clip(camera.clip, frames=[len(camera.times) - 1])[0].save(encoded, "JPEG", quality=90)
    return encoded.getvalue()


def _log_states(rerun: Any, recording: Any, trajectory: Trajectory, moment: float, start: int | None) -> None:
    """Log the ego at its states; the first is `start` periods after the moment, None: the last is at the moment."""
    first = start if start is not None else 1 - len(trajectory.states)
    for number, (x, y, heading, speed) in enumerate(np.asarray(trajectory.states, dtype=np.float64), start=first):
        recording.set_time("time", duration=moment + number / trajectory.rate_hz)
        forward = [np.cos(heading) * max(speed, 0.1), np.sin(heading) * max(speed, 0.1), 0.0]
        recording.log("world/ego", rerun.Arrows3D(origins=[[x, y, 0.0]], vectors=[forward], colors=[_rgb(EXPERT)]))
        recording.log("ego/speed", rerun.Scalars(speed))
        recording.log("ego/heading", rerun.Scalars(heading))


def _rgb(colour: str) -> Sequence[int]:
    return [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
