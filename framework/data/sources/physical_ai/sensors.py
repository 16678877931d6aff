"""What the sensors of a clip measured up to a moment, in the ego frame of that moment.

LiDAR points and radar returns come in their sensor's frame at their own times, without compensation of the vehicle's
motion: each is moved through the frame of the clip's start. A turn of the LiDAR takes 0.1 s from its start.
"""

from __future__ import annotations

import functools
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from framework.data.sources.camera import checked
from framework.data.sources.image import check_image
from framework.data.sources.physical_ai.clip import Recording, calibration_of
from framework.data.sources.physical_ai.files import LIDAR, MICROSECOND, Clip, numbers
from framework.data.sources.physical_ai.rig import lens_of_row, place_of
from framework.data.sources.poses import Poses, newest
from framework.data.sources.shutter import Shutter
from framework.data.sources.tracks import SECOND
from framework.data.sources.video_frames import read_frames
from framework.scene.frames import apply, invert
from framework.scene.types import Camera, FloatArray, Lidar, Radar, SceneError

TURN = SECOND // 10
"""Time (ns) of a turn of the LiDAR."""
SWEEP_AGE, SCAN_AGE = 3 * SECOND // 10, SECOND // 5
"""Age (ns) up to which a turn's start, or a radar's scan, belongs to a moment."""
LATEST_US, RANGE_US = 105_000.0, 210_000.0
"""Green and blue of a point are its time: from the latest after the turn's start (us), down over the range."""
DRIFT = SECOND // 10
"""Time (ns) over which a radar's own velocity is measured."""
RADAR = ("timestamp", "azimuth", "elevation", "distance", "radial_velocity", "rcs")


def cameras_at(
    recording: Recording, now: int, pose: FloatArray, shutter: Shutter, names: Sequence[str] | None
) -> tuple[tuple[Camera, ...], list[str]]:
    """Returns the cameras of `names` (None: all) at `now`, and of each that is left out the name and what is wrong."""
    cameras, left_out = [], []
    chosen = {Path(feature).name: feature for feature in recording.cameras}
    chosen = {name: feature for name, feature in chosen.items() if names is None or name in names}
    intrinsics, extrinsics, faults = calibration_of(recording.clip, tuple(chosen))
    for name, feature in chosen.items():
        times = recording.cameras[feature]
        places = shutter.choose(times, now)
        if name in faults or not len(places) or now - times[places[-1]] > shutter.age_ns:
            left_out.append(f"{name}: {faults.get(name, f'no frame in the {shutter.age_s:g} s before')}")
            continue
        source = f"clip {recording.clip.name}: {name}"
        try:
            intrinsic, lens, (width, height) = lens_of_row(intrinsics.get(name, {}), f"{source}: camera_intrinsics")
            mount = place_of(extrinsics.get(name, {}), f"{source}: sensor_extrinsics")
            place = invert(pose) @ recording.poses.at(times[places[-1:]], now)[0] @ mount
            frames = read_frames(io.BytesIO(_video(recording.clip, feature)), places.tolist(), f"{source}.mp4")
            for frame in frames:
                check_image(frame, width, height, f"{source}.mp4")
            ages = (times[places] - now) / SECOND
            camera = Camera(name, tuple(frames), ages, intrinsic, place, width, height, lens=lens)
            cameras.append(checked(camera, f"{source}: camera_intrinsics"))
        except SceneError as error:
            left_out.append(f"{name}: {error}")
    return tuple(cameras), left_out


@functools.lru_cache(maxsize=8)
def _video(clip: Clip, feature: str) -> bytes:
    """Returns the video of a camera; kept, since the moments of a clip are read in sequence."""
    return clip.read(feature, "mp4")


def lidar_at(recording: Recording, now: int, pose: FloatArray) -> tuple[Lidar | None, dict[str, int]]:
    """Returns the newest whole turn of the LiDAR, without points after `now`, and what is left out by name."""
    if not len(recording.spins):
        return None, {}
    at = int(newest(recording.spins, np.array([now - TURN]), SWEEP_AGE)[0])
    if at < 0:
        return None, {"sensor lidar (no turn that ended before the moment)": 1}
    try:
        mount = place_of(calibration_of(recording.clip, ())[1].get(Path(LIDAR).name, {}), f"{LIDAR}: sensor_extrinsics")
        points, after = _turn(recording.clip, at)
    except SceneError as error:
        return None, {f"sensor lidar ({error})": 1}
    times = recording.spins[at] + after
    known = np.isfinite(points).all(axis=1) & (times <= now) & recording.poses.cover(times)
    left_out = +Counter({"LiDAR point after the moment, or without a pose or place": int((~known).sum())})
    if not known.any():
        return None, {"sensor lidar (no point before the moment)": 1}
    points[known, :3] = _moved(recording.poses, points[known, :3], times[known], now, pose, mount)
    return Lidar(points[known].astype(np.float32), np.eye(4)), dict(left_out)


def _moved(poses: Poses, points: FloatArray, times: Any, now: int, pose: FloatArray, mount: FloatArray) -> FloatArray:
    """Returns points `(n, 3)` of a sensor at `mount`, each measured at its time, in the ego frame `pose` of `now`."""
    instants, which = np.unique(times, return_inverse=True)
    carried = invert(pose) @ poses.at(instants, now) @ mount
    moved: FloatArray = np.einsum("nij,nj->ni", carried[which, :3, :3], points) + carried[which, :3, 3]
    return moved


def _turn(clip: Clip, place: int) -> tuple[FloatArray, Any]:
    """Returns the points `(n, 4)` of a turn, x, y, z (m) in the LiDAR's frame and intensity (0 to 1), and how much
    later (ns) than its start each returned `(n,)`.
    """
    try:
        import DracoPy
    except ImportError as error:
        raise SceneError(
            "its points are compressed by Draco; install the extra: uv sync --extra physical_ai"
        ) from error
    encoded = _turns(clip)[place].as_py()
    try:
        cloud = DracoPy.decode(encoded)
    except Exception as error:  # it has exceptions of its own for damage
        raise SceneError(f"turn {place}: {error}: is no Draco; download it again") from error
    if cloud.colors is None:
        raise SceneError(f"turn {place}: has no colours, which are intensity and time; download it again")
    colours = np.asarray(cloud.colors, dtype=np.int64).reshape(-1, np.shape(cloud.colors)[-1])
    points = np.c_[np.asarray(cloud.points, dtype=np.float64).reshape(-1, 3), colours[:, 0] / 255.0]
    after = LATEST_US - (colours[:, 2] * 256 + colours[:, 1]) * (RANGE_US / 65535.0)
    return points, np.round(after * MICROSECOND).astype(np.int64)


@functools.lru_cache(maxsize=1)
def _turns(clip: Clip) -> Any:
    """Returns the compressed turns of a clip; kept, since a file holds all of them."""
    table = clip.table(LIDAR)
    if "draco_encoded_pointcloud" not in table.schema.names:
        raise SceneError(f"{clip.archive(LIDAR)}: column draco_encoded_pointcloud: is missing; download it again")
    return table["draco_encoded_pointcloud"]


def radar_at(
    recording: Recording, now: int, pose: FloatArray, others: dict[str, int]
) -> tuple[Radar | None, list[str]]:
    """Returns the newest scan of each radar up to `now`, merged in the ego frame, and of each that is left out what is
    wrong. Returns that are not finite are counted in `others`. Radial velocities are over ground: the radar's own
    velocity along the ray is added.
    """
    returns, left_out = [], []
    extrinsics = calibration_of(recording.clip, ())[1]
    for feature in recording.radars:
        name = Path(feature).name
        try:
            columns = _scans(recording.clip, feature)
            mount = place_of(extrinsics.get(name, {}), f"clip {recording.clip.name}: {name}: sensor_extrinsics")
            scans = np.unique(columns["timestamp"])
            at = int(newest(scans, np.array([now]), SCAN_AGE)[0])
            if at < 0:
                raise SceneError(f"no scan in the {SCAN_AGE / SECOND:g} s before")
            returns.append(_returns(recording.poses, columns, int(scans[at]), now, pose, mount))
        except SceneError as error:
            left_out.append(f"{name}: {error}")
    merged = np.concatenate(returns) if returns else np.zeros((0, 5))
    known = np.isfinite(merged).all(axis=1)
    if not known.all():
        others["radar return that is not finite"] = int((~known).sum())
    merged = merged[known]
    return (Radar(merged.astype(np.float32), np.eye(4)) if len(merged) else None), left_out


def _returns(
    poses: Poses, columns: Mapping[str, Any], scan: int, now: int, pose: FloatArray, mount: FloatArray
) -> FloatArray:
    """Returns the returns `(n, 5)` of a scan, as `Radar` has them, in the ego frame."""
    rows = {name: column[columns["timestamp"] == scan].astype(np.float64) for name, column in columns.items()}
    level = np.cos(rows["elevation"])
    ray = [level * np.cos(rows["azimuth"]), level * np.sin(rows["azimuth"]), np.sin(rows["elevation"])]
    rays = np.stack(ray, axis=1)
    first = max(scan - DRIFT, int(poses.times[0]))
    before, then = (poses.at(np.array([time]), now)[0] @ mount for time in (first, scan))
    own = (then[:3, 3] - before[:3, 3]) / max((scan - first) / SECOND, 1e-9)
    points = apply(invert(pose) @ then, rays * rows["distance"][:, None])
    over_ground = rows["radial_velocity"] + (rays @ then[:3, :3].T) @ own
    return np.c_[points, over_ground, rows["rcs"]]


@functools.lru_cache(maxsize=16)
def _scans(clip: Clip, feature: str) -> dict[str, Any]:
    """Returns the columns of a radar's returns; kept, since a file holds all of them."""
    source = f"{clip.archive(feature)}: {clip.name}"
    columns = dict(zip(RADAR, numbers(clip.table(feature), RADAR, source), strict=True))
    columns["timestamp"] = columns["timestamp"].astype(np.int64) * MICROSECOND
    return columns
