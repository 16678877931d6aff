"""The nine cameras of an Argoverse 2 sensor log: seven around the vehicle and a stereo pair, 20 images a second.

The published images are already undistorted: the calibration's k1, k2 and k3 describe the lenses before, and are not
read (https://github.com/argoverse/av2-api/issues/219). `ring_front_center` is upright, 1550 x 2048 pixels. Logs may
lack the stereo pair or its calibration.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from framework.data.sources.argoverse_log import (
    CALIBRATION,
    CAMERAS,
    COLUMNS,
    EXTRINSICS,
    GROUND,
    INTRINSICS,
    Files,
    read_columns,
)
from framework.data.sources.camera import checked
from framework.data.sources.image import read_image
from framework.data.sources.poses import Poses, unit_quaternions
from framework.data.sources.shutter import Shutter
from framework.data.sources.tracks import SECOND, Nanoseconds
from framework.scene.frames import invert, quaternion_rotation, rigid
from framework.scene.types import Camera, FloatArray, SceneError

RESTORE = "restore the file from the dataset"


@dataclass(frozen=True, slots=True)
class Mount:
    """A camera's calibration."""

    intrinsic: FloatArray
    """`(3, 3)`, in pixels."""
    extrinsic: FloatArray
    """`(4, 4)`, sensor to `egovehicle`."""
    width: int
    """Pixels per row."""
    height: int
    """Rows of pixels."""


@dataclass(frozen=True, slots=True)
class Rig:
    """The calibration of a log's cameras."""

    mounts: Mapping[str, Mount]
    """The cameras that are calibrated, by name."""
    faults: Mapping[str, str]
    """What is wrong with the calibration of others, by name."""
    missing: str
    """What is wrong where a camera is in neither."""
    idle: tuple[str, ...] = ()
    """Other sensors whose places are known, which nothing needs."""


def read_rig(log: Path) -> Rig:
    """Returns the calibration of a log's cameras; raises nothing, since a log can do without."""
    try:
        cameras, *columns = read_columns(log / INTRINSICS, *COLUMNS[INTRINSICS])
        placed, *places = read_columns(log / EXTRINSICS, *COLUMNS[EXTRINSICS])
    except SceneError as error:
        return Rig({}, {}, str(error))
    values = np.stack(columns, axis=1).astype(np.float64)
    poses = dict(zip(placed.tolist(), np.stack(places, axis=1).astype(np.float64), strict=True))
    mounts: dict[str, Mount] = {}
    faults: dict[str, str] = {}
    rows = {INTRINSICS: Counter(cameras.tolist()), EXTRINSICS: Counter(placed.tolist())}
    for name, row in zip(cameras.tolist(), values, strict=True):
        pose = poses.get(name)
        if several := [file for file, count in rows.items() if count[name] > 1]:
            faults[name] = f"{log / several[0]}: sensor_name: {rows[several[0]][name]} rows {name}; {RESTORE}"
            continue
        if pose is None:
            faults[name] = f"{log / EXTRINSICS}: sensor_name: no row {name}; {RESTORE}"
            continue
        quaternion, sound = unit_quaternions(pose[None, :4])
        if not sound[0] or not np.isfinite(pose).all():
            faults[name] = f"{log / EXTRINSICS}: qw to tz_m of {name}: no rotation and place; {RESTORE}"
        elif not np.isfinite(row).all() or (row[[0, 1, 4, 5]] <= 0).any():
            faults[name] = f"{log / INTRINSICS}: {name}: a focal length or size is not positive; {RESTORE}"
        else:
            fx, fy, cx, cy, width, height = row.tolist()
            intrinsic = np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])
            extrinsic = rigid(quaternion_rotation(quaternion[0]), pose[4:])
            mounts[name] = Mount(intrinsic, extrinsic, round(width), round(height))
    idle = tuple(sorted(map(str, set(placed.tolist()) - set(cameras.tolist()))))
    return Rig(mounts, faults, f"{log / INTRINSICS}: sensor_name: no row for the camera; {RESTORE}", idle)


def cameras_at(
    log: Path, files: Files, rig: Rig, poses: Poses, now: int, shutter: Shutter, names: Sequence[str] | None = None
) -> tuple[tuple[Camera, ...], list[str]]:
    """Returns the cameras of `names` (None: all) at `now`, and of each image or camera that is left out the name and
    what is wrong.

    An extrinsic leads to the ego frame at `now`: through the city, since the vehicle has moved since the exposure.
    """
    cameras, left_out = [], []
    chosen = files.images if names is None else {name: files.images[name] for name in names if name in files.images}
    for name, times in chosen.items():
        mount = rig.mounts.get(name)
        if mount is None:
            left_out.append(f"{name}: {rig.faults.get(name, rig.missing)}")
            continue
        stamps, images, faults = _read_images(log / CAMERAS / name, mount, times[shutter.choose(times, now)])
        if stamps and now - stamps[-1] <= shutter.age_ns and poses.cover(np.array(stamps[-1:])).all():
            extrinsic = invert(poses.at(np.array([now]))[0] @ GROUND) @ poses.at(np.array(stamps[-1:]), now)[0]
            ages = (np.array(stamps) - now) / SECOND
            size = (mount.width, mount.height)
            camera = Camera(name, images, ages, mount.intrinsic, extrinsic @ mount.extrinsic, *size)
            try:
                cameras.append(checked(camera, str(log / CALIBRATION)))
            except SceneError as error:
                faults.append(str(error))
        elif not faults:
            faults = [f"no image with a pose in the {shutter.age_ns / SECOND:g} s before the moment"]
        left_out += [f"{name}: {fault}" for fault in faults]
    return tuple(cameras), left_out


def _read_images(folder: Path, mount: Mount, times: Nanoseconds) -> tuple[list[int], tuple[bytes, ...], list[str]]:
    """Returns times and bytes of a camera's images at `times`, and what is wrong with those that can't be read."""
    stamps, images, faults = [], [], []
    for time in times.tolist():
        try:
            images.append(read_image(folder / f"{time}.jpg", mount.width, mount.height))
            stamps.append(time)
        except (SceneError, OSError) as error:
            faults.append(str(error))
    return stamps, tuple(images), faults
