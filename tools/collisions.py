"""Checks the collisions that the simulator and the open-loop measures find against brute force: random crossings,
looked at a thousand times a second with shapely. Bisection between two looks finds the moment of the first contact.

  python -m tools.collisions [crossings] [seed]

Prints the share of crashes that are found and whose fault is judged rightly, and the false alarms.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import shapely

from framework.evaluation.planning import trajectory_measures
from framework.scene.kinematics import EGO, box_footprints, ego_box, unicycle_step
from framework.scene.types import Boxes, FloatArray, Scene, Surroundings, Trajectory
from framework.simulation.collisions import BEHIND_COSINE, LANE_HALF_WIDTH_M, LEAST_SHARE, STANDSTILL_SPEED
from framework.simulation.episode import follow_plans
from framework.simulation.scenes import batch_scenes
from framework.simulation.simulator import Simulator

RATE, STEPS, FINE = 4.0, 20, 1000
"""Samples per second that the simulator gets, their number, and samples per second of the brute force."""
SIZES = {"car": (4.5, 1.8), "truck": (12.0, 2.5), "pedestrian": (0.6, 0.6), "bicycle": (1.8, 0.7)}
"""Length and width (m)."""
REAR_AXLE = 0.3
"""How far vehicles' rear axles, about which they turn, are behind their centres, as a fraction of their length."""
SPIN, SPINNING_PACE = (1.0, 2.0), 0.2
"""How fast vehicles spin (rad/s), and how much slower they drive then."""
PRECISION = 1e-7
"""The contact is known to so many seconds."""
TOUCH_M = 0.005
"""A bumper nearer than this to a body touches it."""
ROAD = np.array([[-100.0, -30.0], [250.0, -30.0], [250.0, 30.0], [-100.0, 30.0]])
BATCH = 500


@dataclass(frozen=True, slots=True)
class Crossing:
    """The ego and one road user, under constant controls each."""

    label: str
    speed: float
    ego_control: FloatArray
    """`(2,)`: acceleration and curvature."""
    pose: FloatArray
    """`(4,)`: the road user's state, of the point about which it turns."""
    control: FloatArray
    """`(2,)`."""

    def ego(self, times: FloatArray) -> FloatArray:
        """The ego's states `(time, 4)`."""
        return _states(np.array([0.0, 0.0, 0.0, self.speed]), self.ego_control, times)

    def other(self, times: FloatArray) -> FloatArray:
        """The poses `(time, 3)` of the road user's centre."""
        states = _states(self.pose, self.control, times)
        ahead = self._axle * np.stack([np.cos(states[:, 2]), np.sin(states[:, 2])], axis=-1)
        return np.column_stack([states[:, :2] + ahead, states[:, 2]])

    def polygons(self, times: FloatArray) -> tuple[npt.NDArray[np.object_], npt.NDArray[np.object_]]:
        """The bodies `(time,)` of the ego and of the road user."""
        return _polygons(ego_box(self.ego(times))), _polygons(_boxes(self.other(times), SIZES[self.label]))

    @property
    def _axle(self) -> float:
        return 0.0 if self.label == "pedestrian" else REAR_AXLE * SIZES[self.label][0]


class Crash(NamedTuple):
    """What brute force says of a crossing."""

    collided: bool
    fault: bool


def draw(rng: np.random.Generator) -> Crossing:
    """A crossing in which both are near one place at one time; frontal, crossing, turning, spinning and following
    alike. A third of the vehicles spin: they turn at 1 to 2 rad/s about a point on the line of their rear axle."""
    label = str(rng.choice(list(SIZES)))
    walks = label == "pedestrian"
    speed = 0.0 if rng.random() < 0.05 else rng.uniform(2.0, 25.0)
    ego_control = np.array([rng.uniform(-4.0, 2.0), rng.choice([0.0, rng.uniform(-0.02, 0.02)])])
    pace = 0.0 if rng.random() < 0.1 else rng.uniform(0.5, 2.5) if walks else rng.uniform(2.0, 25.0)
    spin = rng.choice([-1.0, 1.0]) * rng.uniform(*SPIN)
    turning = rng.choice([0.0, rng.uniform(-0.6, 0.6), spin])  # rad/s
    if turning == spin and not walks:
        pace *= SPINNING_PACE
    control = np.array([0.0, 0.0 if walks or pace == 0 else turning / pace])
    heading = rng.choice([0.0, np.pi, np.pi / 2, -np.pi / 2]) + rng.normal(0.0, 0.2)
    meeting = np.array([rng.uniform(0.3, 4.8)])
    base = Crossing(label, speed, ego_control, np.array([0.0, 0.0, heading, pace]), control)
    place = ego_box(base.ego(meeting))[0, :2] + rng.uniform(-1.0, 1.0, 2) * (5.0, 3.0)
    pose = np.array([*(place - base.other(meeting)[0, :2]), heading, pace])
    return Crossing(label, speed, ego_control, pose, control)


def brute_force(crossing: Crossing) -> Crash | None:
    """The first contact at `FINE` samples a second; None where bodies overlap at once."""
    times = np.arange(0, round(STEPS / RATE * FINE) + 1) / FINE
    ego, other = crossing.ego(times), crossing.other(times)
    size = SIZES[crossing.label]
    centres = ego_box(ego)[:, :2]
    reach = np.hypot(EGO.length, EGO.width) / 2 + np.hypot(*size) / 2
    near = np.flatnonzero(np.hypot(*(other[:, :2] - centres).T) < reach)
    hits = near[shapely.intersects(*crossing.polygons(times[near]))]
    if not len(hits):
        return Crash(collided=False, fault=False)
    if hits[0] == 0:
        return None
    return Crash(collided=True, fault=_at_fault(crossing, _contact(crossing, *times[hits[0] - 1 : hits[0] + 1])))


def _contact(crossing: Crossing, apart: float, met: float) -> FloatArray:
    """`(2,)`: the last time apart and the first in contact, `PRECISION` from one another, by bisection."""
    while met - apart > PRECISION:
        middle = np.array([(apart + met) / 2])
        together = shapely.intersects(*crossing.polygons(middle))[0]
        apart, met = (apart, middle[0]) if together else (middle[0], met)
    return np.array([apart, met])


def _at_fault(crossing: Crossing, around: FloatArray) -> bool:
    """Whether the ego causes the collision between the times `around`, from the geometry of the two bodies."""
    ego, other = crossing.ego(around), crossing.other(around)
    boxes = ego_box(ego)
    own, others = ((poses[1, :2] - poses[0, :2]) / (around[1] - around[0]) for poses in (boxes, other))
    if np.linalg.norm(own) <= STANDSTILL_SPEED:
        return False
    if np.linalg.norm(others) <= STANDSTILL_SPEED:
        return True
    body, bodies_other = crossing.polygons(around)
    heading = np.array([np.cos(ego[1, 2]), np.sin(ego[1, 2])])
    relative = other[1, :2] - boxes[1, :2]
    if relative @ heading < BEHIND_COSINE * np.linalg.norm(relative):
        return False
    edge = shapely.get_coordinates(body[1])[:4]
    if (np.abs(edge[:, 1]) > LANE_HALF_WIDTH_M).any():
        return True
    ends = edge[np.argsort((edge - boxes[1, :2]) @ heading)[-2:]]
    if shapely.distance(shapely.linestrings(ends), bodies_other[1]) > TOUCH_M:
        return False
    gap = np.diff(shapely.get_coordinates(shapely.shortest_line(body[0], bodies_other[0])), axis=0)[0]
    across = gap / np.linalg.norm(gap)
    mine, theirs = own @ across, -(others @ across)
    return bool(mine > 0 and mine >= LEAST_SHARE * (mine + theirs))


def scene_of(crossing: Crossing, name: str) -> Scene:
    """The crossing as the simulator gets it: `RATE` samples a second. The ego's plan is the scene's future."""
    times = np.arange(0, STEPS + 1) / RATE
    poses, states, size = crossing.other(times), crossing.ego(times), SIZES[crossing.label]
    past = np.zeros((2, 4))
    past[:, 0], past[:, 3] = [-crossing.speed / RATE, 0.0], crossing.speed
    values = np.array([[*poses[0, :2], 0.9, *size, 1.8, poses[0, 2], 0.0, 0.0]])
    return Scene(
        name,
        "crossing",
        history=Trajectory(past, RATE),
        future=Trajectory(states[1:], RATE),
        boxes=Boxes(values, (crossing.label,)),
        surroundings=Surroundings(poses[None, 1:], (ROAD,), np.array([[-100.0, 0.0], [250.0, 0.0]]), 40.0),
    )


def compare(crossings: int, seed: int) -> dict[str, float]:
    """Figures of `crossings` random crossings: `crashes` (their number), `found`, `found_open_loop`, `right_fault`
    (shares of the crashes) and `false_alarms` (share of the others)."""
    rng = np.random.default_rng(seed)
    scenes, truth = list[Scene](), list[Crash]()
    while len(scenes) < crossings:
        crossing = draw(rng)
        crash = brute_force(crossing)
        if crash is not None:
            scenes.append(scene_of(crossing, f"crossing-{len(scenes)}"))
            truth.append(crash)
    collided, fault = np.concatenate([_simulated(scenes[at : at + BATCH]) for at in range(0, crossings, BATCH)]).T
    crashed, guilty = np.array(truth).T
    opened = np.array([trajectory_measures(scene, _plan(scene))["collision"] > 0 for scene in scenes])
    return {
        "crashes": float(crashed.sum()),
        "found": float(collided[crashed].mean()),
        "found_open_loop": float(opened[crashed].mean()),
        "right_fault": float((fault[crashed & collided] == guilty[crashed & collided]).mean()),
        "false_alarms": float(collided[~crashed].mean()),
    }


def _simulated(scenes: list[Scene]) -> npt.NDArray[np.bool_]:
    """`(n, 2)`: whether the simulator sees a collision, and the ego's fault."""
    batch = batch_scenes(scenes)
    episodes = follow_plans(Simulator(), batch, batch.expert)
    return np.column_stack([episodes.collided.numpy(), episodes.fault.numpy() > 0])


def _plan(scene: Scene) -> Trajectory:
    assert scene.future is not None
    return scene.future


def _states(start: FloatArray, control: FloatArray, times: FloatArray) -> FloatArray:
    states: FloatArray = unicycle_step(np.tile(start, (len(times), 1)), np.tile(control, (len(times), 1)), times)
    return states


def _boxes(poses: FloatArray, size: tuple[float, float]) -> FloatArray:
    return np.column_stack([poses, np.tile(size, (len(poses), 1))])


def _polygons(boxes: FloatArray) -> npt.NDArray[np.object_]:
    bodies: npt.NDArray[np.object_] = shapely.polygons(box_footprints(boxes))
    return bodies


if __name__ == "__main__":
    count, start = (int(word) for word in (sys.argv[1:] + ["10000", "0"][len(sys.argv) - 1 :]))
    for figure, value in compare(count, start).items():
        print(f"{figure:16} {value:g}" if figure == "crashes" else f"{figure:16} {value:.2%}")
