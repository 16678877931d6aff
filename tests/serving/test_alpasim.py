"""A model drives for AlpaSim over real gRPC on loopback, in the closed loop of carla-driver-interface."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from framework.data.render.sample import Sample
from framework.data.render.tasks import Task
from framework.recipe.problem import RecipeError
from framework.scene.lens import project
from framework.scene.types import Camera, SceneError, Trajectory
from framework.serving.worker import Worker
from framework.training.ask import Asker, Reply

pytest.importorskip("carla_driver_interface", reason="pip install 'framework[alpasim]'")

import grpc
from carla_driver_interface.driver import CameraFrame, DriveContext, SessionState
from carla_driver_interface.geometry import Pose
from carla_driver_interface.policies.constant_speed import ConstantSpeedPolicy
from carla_driver_interface.protocol import (
    AvailableCamera,
    CameraSpec,
    DynamicState,
    OpenCVPinholeCameraParam,
    Vec3,
)
from carla_driver_interface.server import serving as serving_theirs
from carla_driver_interface.testing import FakeCamera, FakeLoop, LoopResult

from framework.serving.alpasim import TOO_LATE, UNREADABLE, AlpasimDriver, scene_of
from framework.serving.alpasim_rig import declared
from framework.serving.drive import REFUSED, Driving, listening, parse

SPEED = 5.0
CAMERA = FakeCamera("cam", width=64, height=36)


class SteadyAsker(Asker):
    """Renders prompts as the model's, keeps them, and plans straight on at a constant speed after `waits_s`."""

    waits_s = 0.0
    rate_hz = 4.0
    speed_mps = SPEED
    asked: list[Sample]

    def answer(
        self, prompts: Sequence[Sample], max_new_tokens: int, tasks: Sequence[Task] | None = None
    ) -> list[Reply]:
        self.asked.extend(prompts)
        time.sleep(self.waits_s)
        times = np.arange(1, 21) / self.rate_hz
        plan = Trajectory(np.stack([self.speed_mps * times, 0 * times, 0 * times, 0 * times + self.speed_mps], axis=1))
        return [Reply("", replace(plan, rate_hz=self.rate_hz), 0.0, (), True, 0.0, 1) for _ in prompts]


@pytest.fixture
def steady(asker: Asker) -> SteadyAsker:
    found = SteadyAsker(asker.model, replace(asker.data, cameras=["front"]))
    object.__setattr__(found, "asked", [])
    return found


@contextmanager
def driving(asker: Asker, deadline_s: float = 60.0, max_sessions: int = 64) -> Iterator[tuple[AlpasimDriver, int]]:
    worker = Worker(asker, 8, 64, nullcontext)
    driver = AlpasimDriver("tiny@0", worker, {"cam": "front"}, deadline_s)
    try:
        given = Driving(Path("run"), "127.0.0.1:0", {}, deadline_s, 8, max_sessions, idle_s=60.0)
        with listening(driver, given) as port:
            yield driver, port
    finally:
        worker.close()


def episode(port: int, steps: int = 12, speed: float = SPEED) -> LoopResult:
    with FakeLoop(f"127.0.0.1:{port}", [CAMERA], initial_speed_mps=speed) as loop:
        return loop.run(steps)


@pytest.mark.slow
def test_plans_arrive_where_their_own_driver_of_that_speed_does(steady: SteadyAsker) -> None:
    with driving(steady) as (driver, port):
        ours = episode(port)
        assert driver.episodes == {}
    with serving_theirs(ConstantSpeedPolicy(SPEED), port=0, host="127.0.0.1") as port:
        theirs = episode(port)
    np.testing.assert_allclose(ours.ego.positions, theirs.ego.positions, atol=1e-6)
    assert dict(driver.total) == {"drives": 12}


@pytest.mark.slow
def test_a_model_sees_the_cameras_and_where_the_ego_came_from(steady: SteadyAsker) -> None:
    with driving(steady) as (_, port):
        episode(port)
    first, last = steady.asked[0].scene, steady.asked[-1].scene
    assert [camera.name for camera in first.cameras] == ["front"]
    for scene in (first, last):
        assert scene.history is not None
        expected = [[-0.25 * SPEED * back, 0.0, 0.0, SPEED] for back in range(6, -1, -1)]
        np.testing.assert_allclose(scene.history.states, expected, atol=1e-3)
    assert last.command == "follow"


@pytest.mark.slow
def test_an_untrained_model_drives(asker: Asker) -> None:
    with driving(Asker(asker.model, replace(asker.data, cameras=["front"]))) as (driver, port):
        result = episode(port, steps=3)
    assert result.steps == 3
    assert np.isfinite(result.ego.positions).all()
    assert driver.total["drives"] == 3


def test_a_plan_that_is_late_is_counted_and_the_last_one_goes_on(steady: SteadyAsker) -> None:
    with driving(steady) as (driver, port):
        on_time = episode(port)
    object.__setattr__(steady, "waits_s", 0.3)
    with driving(steady, deadline_s=0.05) as (driver, port):
        late = episode(port, steps=4)
    assert driver.total == {"drives": 4, TOO_LATE: 4}
    np.testing.assert_allclose(late.ego.positions, on_time.ego.positions[:4], atol=1e-6)  # straight on at its speed


def test_a_session_that_is_open_at_the_end_counts(steady: SteadyAsker) -> None:
    with driving(steady) as (driver, port), FakeLoop(f"127.0.0.1:{port}", [CAMERA]) as loop:
        loop._stub.close_session = lambda *_, **__: None
        loop.run(2)
    assert driver.total["drives"] == 2


@pytest.mark.slow
def test_sessions_run_at_once(steady: SteadyAsker) -> None:
    with driving(steady) as (driver, port):
        results: list[LoopResult] = []
        threads = [Thread(target=lambda: results.append(episode(port))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [result.steps for result in results] == [12, 12, 12]
    assert driver.total["drives"] == 36


@pytest.mark.fault("a request that cannot be used")
def test_a_session_whose_client_is_gone_is_closed_and_a_camera_that_is_missing_is_named(
    steady: SteadyAsker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("framework.serving.drive.WAKE_S", 0.05)
    with driving(steady, max_sessions=1) as (driver, port):
        unlike = FakeLoop(f"127.0.0.1:{port}", [FakeCamera("left")])
        with unlike, pytest.raises(grpc.RpcError, match=r"model sees front, .* declares left; .*cameras=left:front"):
            unlike.run(1)
        assert driver.episodes == {}
        loop = FakeLoop(f"127.0.0.1:{port}", [CAMERA])
        loop._stub.close_session = lambda *_, **__: None  # the client dies before it says so
        loop.run(2)
        loop.close()
        (left,) = driver.episodes.values()
        with pytest.raises(grpc.RpcError, match="1 sessions are open; close one") as refused:
            episode(port, steps=1)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        left.seen -= 61.0
        end = time.monotonic() + 10.0
        while driver.episodes and time.monotonic() < end:
            time.sleep(0.05)
        assert driver.episodes == {}
        assert episode(port, steps=2).steps == 2
    assert driver.total == {"drives": 4, REFUSED: 1}


@pytest.mark.fault("a request that cannot be used")
def test_a_connection_that_is_lost_during_a_call_frees_its_session(
    steady: SteadyAsker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("framework.serving.drive.WAKE_S", 0.02)
    monkeypatch.setattr("framework.serving.drive.DROPPED_S", 0.0)
    object.__setattr__(steady, "waits_s", 0.3)
    with driving(steady) as (driver, port):
        loop = FakeLoop(f"127.0.0.1:{port}", [CAMERA])

        def broken_off() -> None:
            with suppress(grpc.RpcError, ValueError):
                loop.run(2)

        client = Thread(target=broken_off)
        client.start()
        end = time.monotonic() + 10.0
        while not steady.asked and time.monotonic() < end:
            time.sleep(0.005)
        assert len(driver.episodes) == 1
        loop.close()
        while driver.episodes and time.monotonic() < end:
            time.sleep(0.02)
        assert driver.episodes == {}
        client.join()


@contextmanager
def session_of(asker: Asker, *cameras: str) -> Iterator[tuple[AlpasimDriver, SessionState]]:
    """A driver and a session of it that has one pose and no image, without a server between them."""
    worker = Worker(asker, 8, 64, nullcontext)
    driver = AlpasimDriver("tiny@0", worker, {"cam": "front"}, 60.0)
    session = SessionState("it", 0, "", {name: FakeCamera(name, 64, 36).available_camera() for name in cameras})
    step(session, 0)
    try:
        yield driver, session
    finally:
        worker.close()


def step(session: SessionState, now: int, *images: int) -> DriveContext:
    """The drive at `now` (us), once the pose there has come and images of these times."""
    session.ego_trajectory.append(now, Pose.from_xyz_yaw(SPEED * now / 1e6, 0.0, 0.0, 0.0))
    session.dynamic_states.append(DynamicState(linear_velocity=Vec3(x=SPEED)))
    frames = [CameraFrame("cam", at, at, picture()) for at in images]
    session.frame_history["cam"] = [*session.frame_history.get("cam", []), *frames]
    return DriveContext(session, now, now + 100_000, None)


def test_a_plan_keeps_the_rate_of_its_codec(steady: SteadyAsker) -> None:
    object.__setattr__(steady, "rate_hz", 2.0)
    with session_of(steady, "cam") as (driver, session):
        driver.on_session_start(session)
        plan = driver.drive(step(session, 100_000, 100_000)).trajectory_in_rig
    np.testing.assert_array_equal(np.diff(plan.timestamps_us), 500_000)
    np.testing.assert_allclose(plan.positions[:, 0], SPEED * (np.array(plan.timestamps_us) - 100_000) / 1e6)


@pytest.mark.fault("a request that cannot be used")
def test_what_a_drive_lacks_is_counted_and_the_next_one_is_driven(steady: SteadyAsker) -> None:
    with session_of(steady, "cam") as (driver, session):
        driver.on_session_start(session)
        for images, faults in (((), 1), ((300_000, 150_000, 300_000, 900_000), 1)):  # again, late, from later
            driver.drive(step(session, 300_000 + len(images), *images))
            assert driver.episodes["it"].faults.total() == faults
        object.__setattr__(steady, "speed_mps", 5000.0)
        driver.drive(step(session, 400_000))
        assert driver.episodes["it"].faults == {UNREADABLE: 1, "absurd": 1}
        driver.drive(step(session, 1 << 63))
        assert driver.episodes["it"].faults[UNREADABLE] == 2
        driver.on_session_close(session)
        driver.on_session_close(session)  # as the sweeper may
    assert driver.total["drives"] == 4


@pytest.mark.fault("a request that cannot be used")
def test_two_cameras_that_would_be_one_are_refused(steady: SteadyAsker) -> None:
    with session_of(steady, "cam", "front") as (driver, session):
        with pytest.raises(SceneError, match=r"cam, front would all be the model's front; say with cameras="):
            driver.on_session_start(session)
        assert driver.episodes == {}


def test_only_the_poses_that_a_history_shows_are_read(steady: SteadyAsker) -> None:
    with session_of(steady, "cam") as (driver, session):
        driver.on_session_start(session)
        driver.drive(step(session, 100_000, 100_000))
        for now in range(200_000, 5_000_000, 100_000):
            last = step(session, now)
        whole = scene_of(last, driver.episodes["it"].cameras)
        del session.ego_trajectory.poses[:20], session.ego_trajectory.timestamps_us[:20]
        session.dynamic_states[0] = DynamicState()
        assert whole.history is not None
        part = scene_of(last, driver.episodes["it"].cameras).history
        assert part is not None
        np.testing.assert_array_equal(part.states, whole.history.states)
        session.ego_trajectory.poses[:5] = [Pose.from_xyz_yaw(np.nan, 0.0, 0.0, 0.0)] * 5
        assert np.isfinite(scene_of(last, driver.episodes["it"].cameras).history.states).all()  # type: ignore[union-attr]


def test_lenses_show_points_where_opencv_and_the_polynomial_do() -> None:
    pinhole = CAMERA.available_camera()
    ahead = np.array([[12.5, 0.0, 1.5], [12.5, 2.0, 0.5]])
    u = 32 + CAMERA.focal_px * np.array([0.0, -0.2])
    v = 18 + CAMERA.focal_px * np.array([0.0, 0.1])
    np.testing.assert_allclose(project(seen_by(pinhole), ahead), np.stack([u, v], axis=1), atol=1e-4)
    bent = CAMERA.available_camera()
    bent.intrinsics.opencv_pinhole_param.CopyFrom(
        OpenCVPinholeCameraParam(
            principal_point_x=32, principal_point_y=18, focal_length_x=60, focal_length_y=61,
            radial_coeffs=[0.1, -0.02, 0.003], tangential_coeffs=[0.004, -0.005],
        )
    )  # fmt: skip
    x, y = -0.2, 0.1
    r2 = x * x + y * y
    radial = 1 + 0.1 * r2 - 0.02 * r2**2 + 0.003 * r2**3
    expected = [
        32 + 60 * (x * radial + 2 * 0.004 * x * y - 0.005 * (r2 + 2 * x * x)),
        18 + 61 * (y * radial + 0.004 * (r2 + 2 * y * y) - 2 * 0.005 * x * y),
    ]
    np.testing.assert_allclose(
        project(declared("front", bent).camera([(0.0, picture())]), ahead)[1], expected, atol=1e-4
    )
    wide = CAMERA.available_camera()
    wide.intrinsics.CopyFrom(CameraSpec(
        ftheta_param={"principal_point_x": 32, "principal_point_y": 18, "angle_to_pixeldist_poly": [0, 40, -3]},
        resolution_w=64, resolution_h=36,
    ))  # fmt: skip
    angle = np.arctan(np.hypot(x, y))
    radius = 40 * angle - 3 * angle**2
    expected = [32 + radius * x / np.hypot(x, y), 18 + radius * y / np.hypot(x, y)]
    np.testing.assert_allclose(
        project(declared("front", wide).camera([(0.0, picture())]), ahead)[1], expected, atol=1e-4
    )


def seen_by(camera: AvailableCamera) -> Camera:
    return declared("front", camera).camera([(0.0, picture())])


def picture() -> bytes:
    with FakeLoop("127.0.0.1:1", [CAMERA]) as loop:
        return loop._encode(np.zeros((36, 64, 3), np.uint8))


@pytest.mark.fault("a request that cannot be used")
def test_cameras_that_cannot_be_used_are_named() -> None:
    flat = CAMERA.available_camera()
    flat.intrinsics.opencv_pinhole_param.focal_length_x = 0.0
    with pytest.raises(SceneError, match="camera cam: intrinsics: focal lengths must be positive"):
        declared("front", flat)
    bare = CAMERA.available_camera()
    bare.intrinsics.Clear()
    with pytest.raises(SceneError, match="camera cam: resolution 0 x 0; declare its size"):
        declared("front", bare)
    small = declared("front", FakeCamera("cam").available_camera())
    with pytest.raises(SceneError, match="image of 64 x 36, not of the declared 640 x 360"):
        small.camera([(0.0, picture())])


def test_all_words_that_cannot_be_used_are_told() -> None:
    with pytest.raises(RecipeError, match="'cam:left'; give ALPASIM_NAME:MODEL_NAME"):
        parse(["--alpasim", "run=nowhere", "cameras=cam:front,cam:left"])
    with pytest.raises(RecipeError) as refused:
        parse(["run=nowhere", "--port", "70000", "cameras=a", "hosts=x"])
    assert {problem.key for problem in refused.value.problems} == {"run", "protocol", "port", "cameras", "hosts"}
