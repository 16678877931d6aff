"""The domain's dataclasses, in SI units, radians and seconds, and in the ego frame at the current time unless a field
says otherwise.

Ego frame: x forward, y left, z up, origin at the rear axle's projection on the ground. Every array is numpy. A field
that a recording may lack is `None` or empty. `framework.scene.check.check_scene` validates a scene field by field.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from framework.scene.dialogue import Dialogue

FloatArray = npt.NDArray[np.floating[Any]]

RATE_HZ = 4.0
"""Default rate of trajectories, histories and other agents' futures."""
HORIZON_S = 5.0
"""Default length of a trajectory."""
HORIZON_STEPS = round(HORIZON_S * RATE_HZ)
"""Default number of states of a trajectory."""

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
"""Classes of few scenes. Boxes may have them; the nuScenes score leaves them out."""
CLASSES = DETECTION_CLASSES + RARE_CLASSES
ALL = "all"
"""The slice of all scenes in metrics, hence the name of no kind."""
NAME_BYTES = 64
"""The longest name of a kind or topic in UTF-8. Ranks exchange only tensors, so names travel as rows of bytes."""


@dataclass(frozen=True, slots=True)
class Trajectory:
    """States at a fixed rate. A *future* starts one period after the current time. A *history* ends with the current
    time, hence its last row is (0, 0, 0, speed).
    """

    states: FloatArray
    """`(time, 4)`: x (m), y (m), heading (rad, in (-pi, pi]), speed (m/s, never negative)."""
    rate_hz: float = RATE_HZ
    """States per second."""


@dataclass(frozen=True, slots=True)
class Boxes:
    """Three-dimensional boxes of objects."""

    values: FloatArray
    """`(n, 9)`: centre x, y, z (m), length, width, height (m), yaw about z (rad), velocity x, y (m/s, over ground, in
    the ego frame's axes; NaN where unknown).
    """
    labels: tuple[str, ...]
    """`n` class names of `CLASSES`."""
    track_ids: npt.NDArray[np.int64] | None = None
    """`(n,)` identities over time; None where unknown."""
    scores: FloatArray | None = None
    """`(n,)` confidences from 0 to 1; None for annotations."""
    points: npt.NDArray[np.int64] | None = None
    """`(n,)` points of the LiDAR, or else of the radar, inside each box; None where unknown."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, chosen: npt.NDArray[np.bool_]) -> Boxes:
        """Returns the boxes at which `chosen` `(n,)` is true."""
        return Boxes(
            values=self.values[chosen],
            labels=tuple(label for label, wanted in zip(self.labels, chosen, strict=True) if wanted),
            track_ids=None if self.track_ids is None else self.track_ids[chosen],
            scores=None if self.scores is None else self.scores[chosen],
            points=None if self.points is None else self.points[chosen],
        )

    def nearest(self, limit: int) -> Boxes:
        """Returns at most `limit` boxes, those nearest to the ego on the ground, nearest first."""
        order = np.argsort(np.hypot(self.values[:, 0], self.values[:, 1]), kind="stable")[:limit]
        return Boxes(
            values=self.values[order],
            labels=tuple(self.labels[row] for row in order),
            track_ids=None if self.track_ids is None else self.track_ids[order],
            scores=None if self.scores is None else self.scores[order],
            points=None if self.points is None else self.points[order],
        )

    def visible(self) -> Boxes:
        """Returns the boxes in which a sensor has a point; all where points are not counted."""
        return self if self.points is None else self.take(np.asarray(self.points) != 0)


LENSES = ("brown_conrady", "fisheye", "f_theta", "mei")
"""The models of a lens, see `framework.scene.lens`."""


@dataclass(frozen=True, slots=True)
class Lens:
    """How a lens departs from a pinhole; `framework.scene.lens` has the equations."""

    model: str
    """One of `LENSES`."""
    coefficients: FloatArray
    """`(k,)`: of `brown_conrady` OpenCV's k1, k2, p1, p2, k3, k4, k5, k6, s1, s2, s3, s4 (the first 4, 5, 8 or 12), of
    `fisheye` OpenCV's k1, k2, k3, k4, of `f_theta` the factors of theta, theta^2, theta^3 and so on, of `mei` xi, k1,
    k2.
    """


@dataclass(frozen=True, slots=True)
class Camera:
    """One camera: a still or a clip."""

    name: str
    """The camera's name, such as `front`."""
    frames: tuple[bytes, ...]
    """Encoded images (JPEG or PNG), oldest first; empty where there is a `clip`."""
    times: FloatArray
    """`(frames,)`: each frame's time relative to the current time (s, negative before it)."""
    intrinsic: FloatArray
    """`(3, 3)`, in pixels of `width` x `height`: from the plane at depth 1, distorted by the `lens`, to pixels."""
    extrinsic: FloatArray
    """`(4, 4)`, sensor to ego at the current time, of the newest frame. The sensor's own axes are x right, y down,
    z forward."""
    width: int
    """Pixels per row."""
    height: int
    """Rows of pixels."""
    clip: bytes | None = None
    """All frames as one encoded video (H.264 or AV1 in MP4); None where there are `frames`."""
    lens: Lens | None = None
    """The distortion of the images; None for a pinhole, which undistorted images have."""


@dataclass(frozen=True, slots=True)
class Lidar:
    """One LiDAR sweep."""

    points: FloatArray
    """`(n, 4)` float32: x, y, z (m) in the *sensor's* frame, intensity (0 to 1)."""
    extrinsic: FloatArray
    """`(4, 4)`, sensor to ego."""


@dataclass(frozen=True, slots=True)
class Radar:
    """The returns of all radars, merged."""

    returns: FloatArray
    """`(n, 5)` float32: x, y, z (m) in the *sensor's* frame, radial velocity over ground (m/s, positive when receding;
    the ego's own motion is compensated), radar cross-section (dB m^2).
    """
    extrinsic: FloatArray
    """`(4, 4)`, sensor to ego."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What closed-loop metrics and rewards need in addition to the expert's future. The model sees nothing of it."""

    agents: FloatArray
    """`(n, time, 3)`: x, y, heading of each of the scene's `boxes` at the future trajectory's times; NaN once gone."""
    drivable: tuple[FloatArray, ...] = ()
    """Closed polygons `(k, 2)` (m), whose union is the drivable area."""
    route: FloatArray | None = None
    """`(k, 2)`: the centreline to follow (m); None where unknown."""
    speed_limit: float | None = None
    """The speed limit (m/s); None where unknown."""
    red_lights: FloatArray | None = None
    """`(n, 6)`: the ends x, y, x, y of a stop line (m), and the interval (s from now) in which a light, or somebody who
    directs the traffic, forbids to cross it; None where unknown.
    """
    distant: Boxes | None = None
    """Those who are not annotated at the current time, being too far away or hidden, and may come near; None where
    unknown. They are simulated, but no target. x and y are NaN for who is not there yet."""
    distant_agents: FloatArray | None = None
    """`(m, time, 3)`: as `agents`, of the `distant`."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a scene with its answer."""

    question: str
    """The question's text."""
    answer: str
    """The right answer's text."""
    topic: str
    """The row of the accuracy tables that it counts in (count, distance, hazard, manoeuvre, ...)."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One moment of driving: what was sensed, what is annotated, and what the expert did next. Or a `dialogue`, which
    has none of these.
    """

    id: str
    """The scene's unique name."""
    kind: str
    """The kind of scenario, by which metrics are sliced."""
    cameras: tuple[Camera, ...] = ()
    """The cameras, of one rig."""
    lidar: Lidar | None = None
    """The LiDAR's sweep."""
    radar: Radar | None = None
    """The radars' returns."""
    perception: Boxes | None = None
    """The noisy output of the perception stack: an input."""
    boxes: Boxes | None = None
    """The annotated boxes: a target."""
    history: Trajectory | None = None
    """The ego's past."""
    future: Trajectory | None = None
    """The expert's future: a target."""
    surroundings: Surroundings | None = None
    """What closed-loop metrics and rewards need."""
    command: str = "follow"
    """The navigator's instruction: "follow", "left", "right" or "straight"."""
    questions: tuple[Question, ...] = ()
    """Questions with answers: targets."""
    caption: str | None = None
    """A description of the scene: a target."""
    thought: str | None = None
    """The reasoning that leads to the expert's manoeuvre: a target."""
    dialogue: Dialogue | None = None
    """A conversation with images of its own: a target."""
    provenance: dict[str, str] = field(default_factory=dict)
    """The scene's origin: dataset, log, timestamp (integer nanoseconds as a string), licence."""


def road_users(scene: Scene) -> tuple[Boxes, FloatArray]:
    """Everybody who is simulated, the annotated first, then the distant: boxes `(n + m)` at the current time, and their
    poses `(n + m, time, 3)` at the future's times. The scene must have boxes and surroundings."""
    assert scene.boxes is not None
    assert scene.surroundings is not None
    boxes, around = scene.boxes, scene.surroundings
    if around.distant is None or around.distant_agents is None:
        return boxes, around.agents
    values, ids = np.concatenate([boxes.values, around.distant.values]), (boxes.track_ids, around.distant.track_ids)
    tracks = None if ids[0] is None or ids[1] is None else np.concatenate([ids[0], ids[1]])
    poses = np.concatenate([around.agents, around.distant_agents])
    return Boxes(values, boxes.labels + around.distant.labels, track_ids=tracks), poses


class SceneError(ValueError):
    """A scene, record or field that cannot be used. The message names the source, the record, the field and the
    remedy.
    """
