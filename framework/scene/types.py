"""The domain's dataclasses. SI units, radians, seconds; the ego frame at the current time unless a line says
otherwise.

Ego frame: x forward, y left, z up, origin at the rear axle's projection on the ground. Every array is numpy, every
field that a recording may lack is `None` or empty, and `framework.scene.check.check_scene` says what is wrong with a
scene by field.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]

RATE_HZ = 4.0
"""Default rate of trajectories, histories and other agents' futures."""
HORIZON_S = 5.0
"""Default length of a trajectory."""

DETECTION_CLASSES = (
    "car",
    "truck",
    "bus",
    "trailer",
    "construction_vehicle",
    "pedestrian",
    "motorcycle",
    "bicycle",
    "traffic_cone",
    "barrier",
)
"""nuScenes' ten detection classes, scored by the detection metrics."""
RARE_CLASSES = ("animal", "debris", "hose")
"""What few scenes show; boxes may carry these, the nuScenes score leaves them out."""
CLASSES = DETECTION_CLASSES + RARE_CLASSES


@dataclass(frozen=True, slots=True)
class Trajectory:
    """States at a fixed rate.

    `states` is `(time, 4)`: x (m), y (m), heading (rad, in (-pi, pi]), speed (m/s, never negative). A *future* starts
    one period after the current time; a *history* ends with the current time, hence its last row is (0, 0, 0, speed).
    """

    states: FloatArray
    rate_hz: float = RATE_HZ


@dataclass(frozen=True, slots=True)
class Boxes:
    """Three-dimensional boxes of objects.

    `values` is `(n, 9)`: centre x, y, z (m), length, width, height (m), yaw about z (rad), velocity x, y (m/s, over
    ground, in the ego frame's axes; NaN where unknown). `labels` are `n` class names of `CLASSES`. `track_ids`,
    `scores` (0 to 1) and `points` (LiDAR points inside) are `(n,)` or None where unknown.
    """

    values: FloatArray
    labels: tuple[str, ...]
    track_ids: npt.NDArray[np.int64] | None = None
    scores: FloatArray | None = None
    points: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True)
class Camera:
    """One camera: a still or a clip.

    `frames` are encoded images (JPEG or PNG), oldest first; or there are none, and `clip` is one encoded video (H.264
    or AV1 in MP4) of them all. `times` `(frames,)` are seconds before (negative) the current time. `intrinsic` is
    `(3, 3)` in pixels of `width` x `height`; `extrinsic` is `(4, 4)`, sensor to ego, the sensor's own axes being x
    right, y down, z forward.
    """

    name: str
    frames: tuple[bytes, ...]
    times: FloatArray
    intrinsic: FloatArray
    extrinsic: FloatArray
    width: int
    height: int
    clip: bytes | None = None


@dataclass(frozen=True, slots=True)
class Lidar:
    """One sweep. `points` is `(n, 4)` float32: x, y, z (m) in the *sensor's* frame, intensity (0 to 1). `extrinsic`
    `(4, 4)`: sensor to ego.
    """

    points: FloatArray
    extrinsic: FloatArray


@dataclass(frozen=True, slots=True)
class Radar:
    """Returns of all radars merged.

    `returns` is `(n, 5)` float32: x, y, z (m) in the *sensor's* frame, radial velocity over ground (m/s, positive
    when receding; the ego's own motion is compensated), radar cross-section (dB m^2). `extrinsic` `(4, 4)`: sensor to
    ego.
    """

    returns: FloatArray
    extrinsic: FloatArray


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What closed-loop metrics and rewards need in addition to the expert's future. The model sees nothing of it.

    `agents` is `(n, time, 3)`: x, y, heading of each of the scene's `boxes` at the future trajectory's times (NaN
    when gone). `drivable` are closed polygons `(k, 2)` (m); the drivable area is their union. `route` is `(k, 2)`,
    the centreline to follow. `speed_limit` in m/s, None where unknown. `red_lights` is `(n, 6)`: the ends x, y, x, y of
    a stop line (m) and from when until when (s from now) nobody may cross it, by a light or by somebody who directs the
    traffic; None where unknown.
    """

    agents: FloatArray
    drivable: tuple[FloatArray, ...] = ()
    route: FloatArray | None = None
    speed_limit: float | None = None
    red_lights: FloatArray | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """A question about the scene with its answer. `topic` groups the accuracy tables (count, distance, hazard,
    manoeuvre, ...).
    """

    question: str
    answer: str
    topic: str


@dataclass(frozen=True, slots=True)
class Scene:
    """One moment of driving with all that was sensed, annotated and done next.

    `kind` is the scenario kind by which metrics are sliced; `command` is the navigator's instruction ("follow",
    "left", "right", "straight"). `perception` is the perception stack's own noisy output (an input); `boxes` is the
    annotation (a target). `provenance` says where the scene came from (dataset, log, timestamp in integer nanoseconds
    as a string, licence).
    """

    id: str
    kind: str
    cameras: tuple[Camera, ...] = ()
    lidar: Lidar | None = None
    radar: Radar | None = None
    perception: Boxes | None = None
    boxes: Boxes | None = None
    history: Trajectory | None = None
    future: Trajectory | None = None
    surroundings: Surroundings | None = None
    command: str = "follow"
    questions: tuple[Question, ...] = ()
    caption: str | None = None
    thought: str | None = None
    provenance: dict[str, str] = field(default_factory=dict)


class SceneError(ValueError):
    """A scene, record or field that cannot be used. The message names the source, the record, the field and the
    remedy.
    """
