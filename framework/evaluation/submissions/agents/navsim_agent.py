"""A NAVSIM agent that asks `python -m framework serve` for its plans. Copy it next to `drive_client.py` on PYTHONPATH:

    agent._target_=navsim_agent.LanguageActionAgent

OpenScene's merged point cloud, to which NAVSIM refers its cameras, is taken to be in the ego frame: AgentInput does not
say how the two differ.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from navsim.agents.abstract_agent import AbstractAgent
from navsim.common.dataclasses import AgentInput, SensorConfig, Trajectory

from framework.evaluation.submissions.agents.drive_client import camera, history, lidar, plan

COMMANDS = ("left", "follow", "right", "follow")
"""The navigator's instruction by the place of the one in NAVSIM's: left, straight, right, unknown."""
PERIOD_S, POSES = 0.5, 8


class LanguageActionAgent(AbstractAgent):
    """Plans with the model behind the server.

    Args:
        cameras: The model's name of each camera, by NAVSIM's.
        with_lidar: Whether to send the LiDAR's points.
    """

    def __init__(self, cameras: dict[str, str] | None = None, with_lidar: bool = False) -> None:
        super().__init__(requires_scene=False)
        self.cameras = {"cam_f0": "front"} if cameras is None else dict(cameras)
        self.with_lidar = with_lidar

    def name(self) -> str:
        """See NAVSIM."""
        return "LanguageActionAgent"

    def get_sensor_config(self) -> SensorConfig:
        """The newest frame of the cameras, and of the LiDAR where it is sent."""
        names = ("cam_f0", "cam_l0", "cam_l1", "cam_l2", "cam_r0", "cam_r1", "cam_r2", "cam_b0")
        wanted: dict[str, Any] = {name: [3] if name in self.cameras else False for name in names}
        return SensorConfig(**wanted, lidar_pc=[3] if self.with_lidar else False)

    def initialize(self) -> None:
        """Nothing: the server has the model."""

    def compute_trajectory(self, agent_input: AgentInput) -> Trajectory:
        """See NAVSIM."""
        planned = plan(scene_of(agent_input, self.cameras, self.with_lidar))
        times = PERIOD_S * np.arange(1, POSES + 1)
        known = np.concatenate([[0.0], planned[:, 0]])
        columns = [np.concatenate([[0.0], each]) for each in (planned[:, 1], planned[:, 2], np.unwrap(planned[:, 3]))]
        return Trajectory(np.stack([np.interp(times, known, each) for each in columns], axis=1).astype(np.float32))


def scene_of(agent_input: AgentInput, cameras: dict[str, str], with_lidar: bool) -> dict[str, Any]:
    """The request about what the agent sees."""
    statuses = agent_input.ego_statuses
    poses = np.array([status.ego_pose for status in statuses], dtype=np.float64)
    speeds = np.array([np.hypot(*status.ego_velocity[:2]) for status in statuses])
    times = PERIOD_S * np.arange(1 - len(statuses), 1)
    scene: dict[str, Any] = {
        "command": COMMANDS[int(np.argmax(statuses[-1].driving_command))],
        "history": history(times, poses, speeds),
        "cameras": [],
        "absent": ["radar", "perception"] + ([] if with_lidar else ["lidar"]),
    }
    for theirs, ours in cameras.items():
        seen = getattr(agent_input.cameras[-1], theirs)
        extrinsic = np.eye(4)
        extrinsic[:3, :3], extrinsic[:3, 3] = seen.sensor2lidar_rotation, seen.sensor2lidar_translation
        scene["cameras"].append(camera(ours, seen.image, seen.intrinsics, extrinsic))
    if with_lidar:
        scene["lidar"] = lidar(agent_input.lidars[-1].lidar_pc[:4].T, np.eye(4))
    return scene
