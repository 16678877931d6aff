"""A Bench2Drive agent that asks `python -m framework serve` for its plans. Give the leaderboard this file's path with
`drive_client.py` next to it on PYTHONPATH; the agent's configuration may name a JSON file of `Settings`.

CARLA is left-handed: x forward or east, y right or south, angles clockwise. The model's frame has y to the left.
"""

from __future__ import annotations

import json
import math
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import carla
import numpy as np
from leaderboard.autoagents.autonomous_agent import AutonomousAgent, Track

from framework.evaluation.submissions.agents.drive_client import camera, history, plan

EARTH_M = 6378137.0
"""Radius by which CARLA turns metres into degrees."""


@dataclass
class Settings:
    """How the agent sees and steers."""

    camera: str = "front"
    """The model's name of the camera."""
    width: int = 1600
    """The image's width (pixels)."""
    height: int = 900
    """The image's height (pixels)."""
    fov: float = 70.0
    """The image's horizontal field of view (degrees)."""
    place: tuple[float, float, float] = (0.8, 0.0, 1.6)
    """The camera's place (m) from the vehicle's centre on the ground, x forward, y right, z up."""
    rear_axle_m: float = 1.4
    """How far the rear axle is behind the centre (m)."""
    wheel_base_m: float = 2.9
    """From the rear to the front axle (m)."""
    largest_steer_rad: float = 1.22
    """The wheels' angle at full steering."""
    replan_s: float = 0.5
    """Time between two plans (s): in between, the last one is followed."""


def get_entry_point() -> str:
    """The agent's class, as the leaderboard asks for it."""
    return "LanguageActionAgent"


class LanguageActionAgent(AutonomousAgent):
    """Follows the plans of the model behind the server. It knows its speed, its compass and its place by GNSS alone."""

    def setup(self, path_to_conf_file: str) -> None:
        """See the leaderboard. Bench2Drive appends +NAME to the path."""
        self.track = Track.SENSORS
        file = Path(path_to_conf_file.split("+")[0])
        self.settings = Settings(**json.loads(file.read_text())) if file.suffix == ".json" else Settings()
        self.passed: deque[tuple[float, float, float]] = deque(maxlen=200)
        self.plan: tuple[float, np.ndarray] | None = None

    def sensors(self) -> list[dict[str, Any]]:
        """See the leaderboard."""
        of = self.settings
        level = {"roll": 0.0, "pitch": 0.0, "yaw": 0.0}
        at_axle = {"x": -of.rear_axle_m, "y": 0.0, "z": 0.0}
        return [
            {"type": "sensor.camera.rgb", "id": "CAMERA", "x": of.place[0], "y": of.place[1], "z": of.place[2],
             "width": of.width, "height": of.height, "fov": of.fov, **level},
            {"type": "sensor.other.imu", "id": "IMU", "sensor_tick": 0.05, **at_axle, **level},
            {"type": "sensor.other.gnss", "id": "GPS", "sensor_tick": 0.01, **at_axle, **level},
            {"type": "sensor.speedometer", "id": "SPEED", "reading_frequency": 20},
        ]  # fmt: skip

    def run_step(self, input_data: dict[str, Any], timestamp: float) -> Any:
        """The control at `timestamp` (s)."""
        speed, compass = float(input_data["SPEED"][1]["speed"]), float(input_data["IMU"][1][-1])
        if math.isnan(compass):  # as in the first frames
            compass = self.passed[-1][2] if self.passed else 0.0
        self.passed.append((timestamp, speed, compass))
        if self.plan is None or timestamp - self.plan[0] >= self.settings.replan_s:
            image = np.asarray(input_data["CAMERA"][1])[:, :, 2::-1]  # CARLA's are BGRA
            self.plan = timestamp, plan(self._scene(image, np.asarray(input_data["GPS"][1][:2]), compass))
        steer, throttle, brake = follow(*self.plan, timestamp, speed, self.settings)
        return carla.VehicleControl(steer=steer, throttle=throttle, brake=brake)

    def _scene(self, image: np.ndarray, gps: np.ndarray, compass: float) -> dict[str, Any]:
        of = self.settings
        focal = of.width / (2.0 * math.tan(math.radians(of.fov) / 2.0))
        intrinsic = np.array([[focal, 0.0, of.width / 2.0], [0.0, focal, of.height / 2.0], [0.0, 0.0, 1.0]])
        extrinsic = np.eye(4)
        extrinsic[:3, :3] = [[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]  # right, down, forward
        extrinsic[:3, 3] = of.place[0] + of.rear_axle_m, -of.place[1], of.place[2]
        scene = {
            "history": history(*dead_reckoned(self.passed)),
            "cameras": [camera(of.camera, image, intrinsic, extrinsic)],
            "absent": ["lidar", "radar", "perception"],
        }
        route = route_in_ego([point for point, _ in self._global_plan], gps, compass)
        return {**scene, "route": route.tolist()} if len(route) > 1 else scene


def dead_reckoned(passed: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times `(n,)` up to now, 0 s, poses `(n, 3)` in the ego frame and speeds `(n,)` of (time, speed, compass)."""
    times, speeds, compass = np.array(passed, dtype=np.float64).T
    headings = -(np.unwrap(compass) - compass[-1])
    headings -= headings[-1]
    steps = np.diff(times) * (speeds[1:] + speeds[:-1]) / 2.0
    middle = (headings[1:] + headings[:-1]) / 2.0
    x = np.concatenate([[0.0], np.cumsum(steps * np.cos(middle))])
    y = np.concatenate([[0.0], np.cumsum(steps * np.sin(middle))])
    return times - times[-1], np.stack([x - x[-1], y - y[-1], headings], axis=1), speeds


def route_in_ego(points: Any, gps: np.ndarray, compass: float, reach_m: float = 80.0) -> np.ndarray:
    """The route ahead `(n, 2)` in the ego frame, of points with lat and lon (degrees): those from the nearest on."""
    if not len(points):
        return np.zeros((0, 2))
    degrees = np.array([[point["lat"], point["lon"]] for point in points])
    north = np.radians(degrees[:, 0] - gps[0]) * EARTH_M
    east = np.radians(degrees[:, 1] - gps[1]) * EARTH_M * math.cos(math.radians(gps[0]))
    forward = north * math.cos(compass) + east * math.sin(compass)  # the compass turns clockwise from north
    left = north * math.sin(compass) - east * math.cos(compass)
    route = np.stack([forward, left], axis=1)
    first = int(np.argmin(np.hypot(*route.T)))
    ahead = route[first:]
    return ahead[np.hypot(*ahead.T) < reach_m]


def follow(
    planned_s: float, planned: np.ndarray, now_s: float, speed: float, of: Settings
) -> tuple[float, float, float]:
    """Steering (right is positive), throttle and brake that follow a plan `(time, 5)` made at `planned_s`: pure pursuit
    of a point ahead, and the speed one second ahead in proportion.
    """
    age = now_s - planned_s
    times = np.concatenate([[0.0], planned[:, 0]])
    x, y = (np.concatenate([[0.0], planned[:, column]]) for column in (1, 2))
    heading = np.interp(age, times, np.concatenate([[0.0], np.unwrap(planned[:, 3])]))
    dx, dy = x - np.interp(age, times, x), y - np.interp(age, times, y)
    forward, left = dx * math.cos(heading) + dy * math.sin(heading), dy * math.cos(heading) - dx * math.sin(heading)
    distances = np.hypot(forward, left)
    ahead = np.flatnonzero((times > age) & (distances >= max(3.0, speed)))
    aim = int(ahead[0]) if len(ahead) else len(times) - 1
    reach = max(float(distances[aim]), 1.0)
    angle = math.atan2(2.0 * of.wheel_base_m * left[aim], reach * reach)
    target = float(np.interp(age + 1.0, planned[:, 0], planned[:, 4]))
    steer = float(np.clip(-angle / of.largest_steer_rad, -1.0, 1.0))
    wanted = target - speed
    if target < 0.3 or wanted < -0.5:
        return steer, 0.0, float(np.clip(0.3 - 0.2 * wanted, 0.0, 1.0))
    return steer, float(np.clip(0.15 + 0.3 * wanted, 0.0, 0.75)), 0.0
