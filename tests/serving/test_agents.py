"""Agents that are written for a benchmark's environment drive against the server on loopback."""

from __future__ import annotations

import importlib
import io
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from framework.data.render.sample import Sample
from framework.data.render.tasks import Task
from framework.evaluation.submissions.agent_files import CLIENT, write_agent
from framework.scene.types import Scene, Trajectory
from framework.serving.app import Limits
from framework.training.ask import Asker, Reply
from tests.serving.conftest import on_loopback, serving

SPEED, TURN = 5.0, 0.02


class CurvingAsker(Asker):
    """Keeps scenes, and plans a turn to the left at a constant speed."""

    seen: list[Scene]

    def answer(
        self, prompts: Sequence[Sample], max_new_tokens: int, tasks: Sequence[Task] | None = None
    ) -> list[Reply]:
        self.seen.extend(prompt.scene for prompt in prompts)
        times = np.arange(1, 21) / 4
        states = np.stack([SPEED * times, TURN * (SPEED * times) ** 2 / 2, TURN * SPEED * times, 0 * times + SPEED], 1)
        return [Reply("", Trajectory(states), 0.0, (), True, 0.0, 1) for _ in prompts]


@pytest.fixture
def asked(asker: Asker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Scene]]:
    """What a server on loopback is asked, with stand-ins of the benchmarks' packages."""
    curving = CurvingAsker(asker.model, asker.data)
    object.__setattr__(curving, "seen", [])
    server = serving(curving, Limits(body_bytes=32 << 20, timeout_s=30.0))
    base = type("Base", (), {"__init__": lambda self, **_: None})
    theirs: dict[str, dict[str, Any]] = {
        "carla": {"VehicleControl": SimpleNamespace}, "leaderboard": {}, "leaderboard.autoagents": {},
        "leaderboard.autoagents.autonomous_agent": {"AutonomousAgent": base, "Track": SimpleNamespace(SENSORS="S")},
        "navsim": {}, "navsim.agents": {}, "navsim.agents.abstract_agent": {"AbstractAgent": base}, "navsim.common": {},
        "navsim.common.dataclasses": {"AgentInput": object, "SensorConfig": dict, "Trajectory": SimpleNamespace},
    }  # fmt: skip
    theirs["navsim.common.dataclasses"]["Trajectory"] = lambda poses: SimpleNamespace(poses=poses)
    for name, content in theirs.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.syspath_prepend(str(tmp_path))
    with on_loopback(server) as port:
        monkeypatch.setenv("DRIVE_URL", f"http://127.0.0.1:{port}")
        yield curving.seen
    for name in ("navsim_agent", "bench2drive_agent", CLIENT):
        sys.modules.pop(name, None)


def test_bench2drives_agent_follows_the_plan_and_sees_what_carla_gives(asked: list[Scene], tmp_path: Path) -> None:
    write_agent("bench2drive_agent", tmp_path)
    module = importlib.import_module("bench2drive_agent")
    agent = getattr(module, module.get_entry_point())()
    (tmp_path / "agent.json").write_text('{"width": 64, "height": 36}')
    agent.setup(f"{tmp_path}/agent.json+route")
    camera = next(each for each in agent.sensors() if each["id"] == "CAMERA")
    assert (camera["width"], camera["fov"]) == (64, 70.0)
    north = math.degrees(1 / module.EARTH_M)  # a metre
    east = north / math.cos(math.radians(48.0))
    route = [(0, -5), (0, 10), (0, 20), (10, 25), (20, 25)]  # m east and north: it turns to the right
    agent._global_plan = [({"lat": 48.0 + y * north, "lon": 11.0 + x * east}, None) for x, y in route]
    image = np.zeros((36, 64, 4), np.uint8)
    image[..., 2] = 200  # red, in BGRA
    controls = []
    for step in range(41):
        imu = np.array([0.0] * 6 + [math.nan if step == 0 else 0.0])
        data = {"SPEED": (step, {"speed": SPEED}), "IMU": (step, imu),
                "GPS": (step, np.array([48.0, 11.0, 0.0])), "CAMERA": (step, image)}  # fmt: skip
        controls.append(agent.run_step(data, 0.05 * step))
    assert len(asked) == 5, "a plan each half second, followed in between"
    last = asked[-1]
    assert last.history is not None
    expected = [[-SPEED * back / 4, 0.0, 0.0, SPEED] for back in range(6, -1, -1)]
    np.testing.assert_allclose(last.history.states, expected, atol=1e-9)
    assert last.command == "right"
    assert np.array(Image.open(io.BytesIO(last.cameras[0].frames[0])))[0, 0].tolist() == [200, 0, 0]
    np.testing.assert_allclose(last.cameras[0].extrinsic[:3, 3], [2.2, 0.0, 1.6])
    assert all(control.steer < 0 for control in controls), "left is negative in CARLA"
    bicycle = -math.atan(2.9 * TURN) / 1.22
    assert controls[0].steer == pytest.approx(bicycle, rel=0.1)
    assert controls[0].brake == 0.0


def test_a_plan_is_braked_for_and_headings_are_dead_reckoned(asked: list[Scene], tmp_path: Path) -> None:
    write_agent("bench2drive_agent", tmp_path)
    module = importlib.import_module("bench2drive_agent")
    times = np.arange(1, 21) / 4
    stop = np.stack([times, 0 * times, 0 * times, 0 * times, 0 * times], axis=1)
    assert module.follow(0.0, stop, 0.1, 6.0, module.Settings()) == (0.0, 0.0, 1.0)
    _, throttle, brake = module.follow(0.0, stop + np.array([0, 0, 0, 0, 9.0]), 0.1, 6.0, module.Settings())
    assert (throttle, brake) == (0.75, 0.0)
    turning = [(0.05 * step, 10.0, 0.01 * step) for step in range(40)]  # clockwise: to the right, on a circle of 50 m
    _, poses, _ = module.dead_reckoned(turning)
    angle = 0.01 * 39
    np.testing.assert_allclose(poses[0], [-50 * math.sin(angle), -50 * (1 - math.cos(angle)), angle], atol=1e-2)


def test_navsims_agent_sends_its_cameras_lidar_and_past(asked: list[Scene], tmp_path: Path) -> None:
    write_agent("navsim_agent", tmp_path)
    module = importlib.import_module("navsim_agent")
    agent = module.LanguageActionAgent(with_lidar=True)
    assert agent.get_sensor_config()["cam_f0"] == agent.get_sensor_config()["lidar_pc"] == [3]
    pasts = [(-1.5, 0.0), (-1.0, 0.0), (-0.5, 0.0), (0.0, 0.0)]
    statuses = [
        SimpleNamespace(ego_pose=np.array([SPEED * t, y, 0.0]), ego_velocity=np.array([3.0, 4.0]),
                        driving_command=np.array([1, 0, 0, 0])) for t, y in pasts
    ]  # fmt: skip
    rotation = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    front = SimpleNamespace(
        image=np.full((36, 64, 3), 9, np.uint8), intrinsics=np.array([[50, 0, 32], [0, 50, 18], [0, 0, 1]]),
        sensor2lidar_rotation=rotation, sensor2lidar_translation=np.array([1.5, 0.0, 1.6]),
    )  # fmt: skip
    points = np.concatenate([np.random.default_rng(0).uniform(1, 20, (4, 30)), np.zeros((2, 30))]).astype(np.float32)
    seen = SimpleNamespace(ego_statuses=statuses, cameras=[SimpleNamespace(cam_f0=front)] * 4,
                           lidars=[SimpleNamespace(lidar_pc=points)] * 4)  # fmt: skip
    trajectory = agent.compute_trajectory(seen)
    np.testing.assert_allclose(trajectory.poses[:, 0], SPEED * np.arange(0.5, 4.1, 0.5), atol=1e-5)
    (scene,) = asked
    assert scene.command == "left"
    assert scene.history is not None
    np.testing.assert_allclose(scene.history.states[:, 0], SPEED * np.arange(-1.5, 0.1, 0.25))
    assert scene.lidar is not None
    np.testing.assert_allclose(scene.lidar.points, points[:4].T)
    assert scene.cameras[0].extrinsic[0, 3] == 1.5
    client = importlib.import_module(CLIENT)
    with pytest.raises(RuntimeError, match=r"422: .*history"):
        client.plan({})
