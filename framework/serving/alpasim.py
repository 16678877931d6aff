"""A driver for AlpaSim's closed loop: a run's model behind the gRPC service `egodriver.EgodriverService`.

The package carla-driver-interface keeps the protocol: sessions, frames, poses, and plans between the rig's and the
local frame. Here an observation becomes a scene, and the model's answer a plan with absolute times.
"""

from __future__ import annotations

import logging
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field

import numpy as np
from carla_driver_interface.driver import (
    BaseDriver,
    CameraFrame,
    DriveContext,
    DriveResult,
    SensorFrame,
    SessionState,
)
from carla_driver_interface.geometry import Pose
from carla_driver_interface.geometry import Trajectory as Plan

from framework.data.sources.tracks import EGO_SPAN, PAST, PERIOD, Nanoseconds, Track, ego_history
from framework.scene.check import check_scene, plan_fault
from framework.scene.frames import yaw_of
from framework.scene.kinematics import unicycle_rollout
from framework.scene.types import HORIZON_STEPS, RATE_HZ, Camera, FloatArray, Scene, SceneError, Trajectory
from framework.serving.alpasim_rig import DeclaredCamera, declared
from framework.serving.scenes import command_of_route
from framework.serving.worker import BusyError, Question, Worker

log = logging.getLogger(__name__)

TASK, TOKENS = "drive", 1024
"""The task that is asked, and the most tokens of its answer."""
MICROSECOND = 1000
"""Nanoseconds."""
SEEN_US = (PAST * PERIOD + EGO_SPAN) // MICROSECOND
"""How far back (us) poses are read: a drive takes as long at the end of an episode as at its start."""
LAST_US = (1 << 62) // MICROSECOND
"""Later times (us) do not fit a track's."""
TOO_LATE, UNPARSED, UNREADABLE = "late", "without a plan", "unreadable"
"""Why the last plan is driven on, next to the faults of plans."""


@dataclass
class Episode:
    """What is kept of a session."""

    cameras: Mapping[str, DeclaredCamera]
    """The cameras that the model sees, by their name in the session."""
    plan: Plan | None = None
    """The newest plan of the model, in the local frame."""
    seconds: list[float] = field(default_factory=list)
    """Of each drive, how long the answer took."""
    faults: Counter[str] = field(default_factory=Counter)
    """Drives that the last plan answered, by reason."""
    seen: float = field(default_factory=time.monotonic)
    """When the client last called, by `time.monotonic`."""
    dropped: bool = False
    """Whether the connection was lost during its last call."""


class AlpasimDriver(BaseDriver):
    """Plans for any number of sessions at once with one model.

    A plan that is not there by the deadline, does not parse or cannot be driven, is replaced by the last one, and by
    driving straight on at the same speed where there is none: AlpaSim takes no empty plan. All are counted and told as
    debug scalars.

    Args:
        name: What the driver is called.
        worker: Answers questions.
        cameras: The model's name of each camera, by its name in AlpaSim; what is not listed keeps its name.
        deadline_s: Time for an answer (s).
    """

    def __init__(self, name: str, worker: Worker, cameras: Mapping[str, str], deadline_s: float) -> None:
        self.name = name
        self.worker, self.deadline_s, self.names = worker, deadline_s, cameras
        self.data = worker.asker.data
        if TASK not in self.data.tasks:
            raise ValueError(f"the model has no task {TASK}; its tasks are {', '.join(self.data.tasks)}")
        self.frame_history_length = self.data.video_frames or 1
        self.episodes: dict[str, Episode] = {}
        self.total: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._unseen: set[str] = set()

    def on_session_start(self, session: SessionState) -> None:
        """Take the cameras that the model sees. Raises `SceneError` where one is missing, is two, or cannot be used."""
        wanted = self.data.cameras
        names = {camera: self.names.get(camera, camera) for camera in session.cameras}
        missing = sorted(set(wanted or ()) - set(names.values()))
        if missing:
            raise SceneError(
                f"cameras: the model sees {', '.join(missing)}, the session declares {', '.join(names) or 'none'}; "
                f"say which is which: cameras={(names and next(iter(names))) or 'ALPASIM_NAME'}:{missing[0]}"
            )
        used = {camera: name for camera, name in names.items() if wanted is None or name in wanted}
        if again := next((name for name, count in Counter(used.values()).items() if count > 1), None):
            both = ", ".join(camera for camera, name in used.items() if name == again)
            raise SceneError(f"cameras: {both} would all be the model's {again}; say with cameras= which one is")
        cameras = {camera: declared(name, session.cameras[camera]) for camera, name in used.items()}
        for camera in used:
            if session.cameras[camera].intrinsics.WhichOneof("external_distortion"):
                log.warning("camera %s: the windshield's distortion is left out; places are off by pixels", camera)
        with self._lock:
            self.episodes[session.uuid] = Episode(cameras)

    def on_session_close(self, session: SessionState) -> None:
        """Forget the session, and log what it cost."""
        with self._lock:
            episode = self.episodes.pop(session.uuid, None)
            if episode is None:  # closed before it had started
                return
            self.total.update(episode.faults)
            self.total["drives"] += len(episode.seconds)
        log.info("session %s: %s", session.uuid, summary(episode))

    def on_egomotion(self, session: SessionState, new_poses: Plan) -> None:
        """Note that the client is there."""
        self._note(session)

    def on_frame(self, session: SessionState, frame: SensorFrame) -> None:
        """Note that the client is there."""
        self._note(session)

    def _note(self, session: SessionState) -> None:
        if episode := self.episodes.get(session.uuid):
            episode.seen, episode.dropped = time.monotonic(), False

    def on_dropped(self, uuid: str) -> None:
        """Note that a session's client has gone during a call."""
        if episode := self.episodes.get(uuid):
            episode.dropped = True

    def idle(self, seconds: float, dropped_s: float = 0.0) -> list[str]:
        """The sessions whose client has not called for so long, or for `dropped_s` after it had gone."""
        now = time.monotonic()
        with self._lock:
            waits = {uuid: dropped_s if one.dropped else seconds for uuid, one in self.episodes.items()}
            return [uuid for uuid, wait in waits.items() if now - self.episodes[uuid].seen > wait]

    def drive(self, ctx: DriveContext) -> DriveResult:
        """The plan at `ctx.time_now_us`."""
        self._note(ctx.session)
        episode, started = self.episodes[ctx.session.uuid], time.monotonic()
        anchor = ctx.session.latest_pose()
        if anchor is None:
            return DriveResult(Plan.empty())
        answer, fault = self._ask(ctx, episode, started + self.deadline_s)
        episode.seconds.append(time.monotonic() - started)
        if answer is not None:
            plan = _plan(answer, ctx.time_now_us)
            episode.plan = plan.transform(anchor)
        else:
            episode.faults[fault] += 1
            log.warning("session %s: %s at %d us; the last plan goes on", ctx.session.uuid, fault, ctx.time_now_us)
            plan = _continued(episode.plan, anchor, ctx.time_now_us, ctx.session.speed_mps())
        return DriveResult(plan, debug_scalars={f"plans {name}": count for name, count in episode.faults.items()})

    def _ask(self, ctx: DriveContext, episode: Episode, deadline: float) -> tuple[Trajectory | None, str]:
        """The model's plan, or None with what went wrong."""
        try:
            scene = scene_of(ctx, episode.cameras)
            self._tell_unseen(scene)
            question = Question(TASK, self.data.tasks[TASK], scene, TOKENS, deadline)
            self.worker.ask([question])
            decoded = question.reply.result(max(0.0, deadline - time.monotonic())).decoded
        except (TimeoutError, CancelledError, BusyError):
            return None, TOO_LATE
        except SceneError as error:
            log.warning("session %s: %s", ctx.session.uuid, error)
            return None, UNREADABLE
        if not isinstance(decoded, Trajectory):
            return None, UNPARSED
        fault = plan_fault(decoded, len(decoded.states), decoded.rate_hz)
        return (decoded, "") if fault is None else (None, fault)

    def _tell_unseen(self, scene: Scene) -> None:
        """Warn once of each sensor that the model reads and a session does not give."""
        unseen = {name for name, sensor in self.data.sensors.items() if sensor.rows(scene) is None} - self._unseen
        if unseen:
            self._unseen |= unseen
            log.warning(
                "the model reads %s, which the session does not give: it drives without", ", ".join(sorted(unseen))
            )


def summary(episode: Episode) -> str:
    """What a session's drives took, and how many the last plan answered."""
    if not episode.seconds:
        return "no drive"
    middle, most = np.percentile(episode.seconds, [50, 100])
    faults = "".join(f", {count} {name}" for name, count in sorted(episode.faults.items()))
    return f"{len(episode.seconds)} drives, median {middle:.2f} s, at most {most:.2f} s{faults}"


def scene_of(ctx: DriveContext, cameras: Mapping[str, DeclaredCamera]) -> Scene:
    """The scene at `ctx.time_now_us`. Raises `SceneError` for one that cannot be used.

    Poses before the session's first are continued backwards at its first speed: an episode begins in mid-drive.
    """
    session, now = ctx.session, ctx.time_now_us
    with session.lock:
        stamps = session.ego_trajectory.timestamps_us
        if max(stamps[-1], now) > LAST_US:
            raise SceneError(f"egomotion: a time of {max(stamps[-1], now)} us; give microseconds")
        first = max(bisect_left(stamps, stamps[-1] - SEEN_US) - 1, 0)  # the first pose has what came before it
        poses = session.ego_trajectory.poses[first:]
        times = np.array(stamps[first:], dtype=np.int64)
        speeds = [_speed(state) for state in session.dynamic_states[:1]] or [0.0]
        route = np.array(session.route_waypoints_in_rig[:, :2])
        frames = {name: list(session.frame_history.get(name, ())) for name in cameras}
    if frames and not any(frames.values()):
        raise SceneError(f"cameras: no image of {', '.join(frames)} has come")
    ego = _track(times, [pose.as_matrix() for pose in poses], speeds[0])
    scene = Scene(
        id=f"{session.scene_id or session.uuid}-{now}",
        kind="alpasim",
        cameras=tuple(_camera(cameras[name], seen, now) for name, seen in frames.items() if seen),
        history=ego_history(ego, int(times[-1]) * MICROSECOND, poses[-1].as_matrix()),
        command=command_of_route(route) if len(route) > 1 else "follow",
    )
    if problems := check_scene(scene):
        raise SceneError(problems[0])
    return scene


def _camera(camera: DeclaredCamera, seen: Sequence[SensorFrame], now: int) -> Camera:
    # The newest of each time, in the order of time: frames may be sent again, or late.
    images = {min(frame.timestamp_us, now): frame.image_bytes for frame in seen if isinstance(frame, CameraFrame)}
    return camera.camera([((at - now) / 1e6, images[at]) for at in sorted(images)])


def _speed(state: object) -> float:
    velocity = state.linear_velocity  # type: ignore[attr-defined]
    return float(np.linalg.norm([velocity.x, velocity.y, velocity.z]))


def _track(times_us: Nanoseconds, poses: Sequence[FloatArray], speed: float) -> Track:
    """The ego's poses, and those that it came from at `speed` (m/s)."""
    known = np.array([[*pose[:3, 3], yaw_of(pose[:3, :3])] for pose in poses])
    times = times_us * MICROSECOND
    before = times[0] - PERIOD * np.arange(PAST + 1, 0, -1)
    came = np.repeat(known[:1], len(before), axis=0)
    back = speed * (times[0] - before) / 1e9
    came[:, :2] -= back[:, None] * np.array([np.cos(known[0, 3]), np.sin(known[0, 3])])
    return Track(np.concatenate([before, times]), np.concatenate([came, known]))


def _plan(plan: Trajectory, now: int) -> Plan:
    """A plan's states, from one of its own periods on, as poses at absolute times (us) in the rig's frame."""
    times = [now + round(1e6 * step / plan.rate_hz) for step in range(1, len(plan.states) + 1)]
    return Plan(times, [Pose.from_xyz_yaw(float(x), float(y), 0.0, float(yaw)) for x, y, yaw in plan.states[:, :3]])


def _continued(last: Plan | None, anchor: Pose, now: int, speed: float) -> Plan:
    """What is left of the last plan, in the rig's frame; straight on at `speed` (m/s) where nothing is."""
    if last is not None and last.timestamps_us[-1] > now:
        left = [(at, pose) for at, pose in zip(last.timestamps_us, last.poses, strict=True) if at > now]
        return Plan([at for at, _ in left], [pose for _, pose in left]).transform(anchor.inverse())
    straight = unicycle_rollout(np.array([0.0, 0.0, 0.0, speed]), np.zeros((HORIZON_STEPS, 2)), 1.0 / RATE_HZ)
    return _plan(Trajectory(straight), now)
