"""KITTI's calibration: from the Velodyne over the rectified frame of camera 0 to pixels, and from the IMU.

A pixel is `P_i . R_rect . Tr_velo_to_cam . x` (Geiger et al. 2013, The KITTI Dataset, IJRR 32). `P_i` is `K [I | t]`:
camera i lies at `-t` in the rectified frame of camera 0. The benchmarks have a file for each frame or sequence, the raw
drives three for each day. Numbers are separated by spaces and named at the start of their line.

The dataset does not place its sensors relative to the ground. After the drawing of the vehicle at
https://www.cvlibs.net/datasets/kitti/setup.php the Velodyne is taken to be level, 1.73 m above the ground and 0.76 m
ahead of the rear axle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from framework.data.sources.camera import checked
from framework.data.sources.image import open_image
from framework.scene.frames import invert, is_rigid, rigid
from framework.scene.types import Camera, FloatArray, SceneError

VELODYNE = rigid(np.eye(3), np.array([0.76, 0.0, 1.73]))
"""From the Velodyne to the ego frame."""
CAMERAS = {0: "front_grey", 1: "front_right_grey", 2: "front", 3: "front_right"}
"""Names of the cameras by their numbers: a grey pair and a colour pair."""
AGAIN = "restore it from the dataset"


@dataclass(frozen=True, slots=True)
class Mount:
    """A camera's calibration."""

    intrinsic: FloatArray
    """`(3, 3)`, in pixels."""
    extrinsic: FloatArray
    """`(4, 4)`, sensor to ego."""
    size: tuple[int, int] | None
    """Width and height in pixels; None where the calibration does not tell."""
    source: str
    """The file and the field that tell it, for messages."""


@dataclass(frozen=True, slots=True)
class Rig:
    """The vehicle's sensors in the ego frame."""

    cameras: Mapping[int, Mount]
    """By number."""
    faults: Mapping[int, str]
    """What is wrong with the calibration of other cameras, by number."""
    camera0_to_ego: FloatArray
    """`(4, 4)`, of the rectified frame of camera 0, in which the benchmarks' boxes lie."""
    ego_to_imu: FloatArray | None
    """`(4, 4)`; None in the object benchmark, which has no poses."""


def benchmark_rig(path: Path, has_poses: bool) -> Rig:
    """Returns the rig of a file of the object or, with poses, the tracking benchmark. Raises `SceneError` for a file
    that is missing, or without what every scene needs.
    """
    values = read_numbers(path)
    velodyne = _transform(path, values, ("Tr_velo_to_cam", "Tr_velo_cam"))
    imu = _transform(path, values, ("Tr_imu_to_velo", "Tr_imu_velo")) if has_poses else None
    rectification = _matrix(path, values, ("R0_rect", "R_rect"), (3, 3))
    return _rig(path, values, {number: f"P{number}" for number in CAMERAS}, rectification, velodyne, imu)


def raw_rig(day: Path) -> Rig:
    """Returns the rig of the raw drives in a folder such as `2011_09_26`. Raises as `benchmark_rig` does."""
    cameras, velodyne, imu = (day / f"calib_{name}.txt" for name in ("cam_to_cam", "velo_to_cam", "imu_to_velo"))
    values = read_numbers(cameras)
    rectification = _matrix(cameras, values, ("R_rect_00",), (3, 3))
    names = {number: f"P_rect_{number:02d}" for number in CAMERAS}
    return _rig(cameras, values, names, rectification, _placed(velodyne), _placed(imu))


def read_numbers(path: Path) -> dict[str, FloatArray]:
    """Returns the numbers of a calibration file by name; lines of other values, such as dates, are no part of it.
    Raises `SceneError` where the file is missing or no text.
    """
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except FileNotFoundError as error:
        raise SceneError(f"{path}: is missing; {AGAIN}") from error
    except UnicodeDecodeError as error:
        raise SceneError(f"{path}: is no text; {AGAIN}") from error
    values: dict[str, FloatArray] = {}
    for line in lines:
        name, _, numbers = line.strip().partition(" ")  # sequences of the tracking benchmark leave some colons out
        try:
            values[name.rstrip(":")] = np.array([float(number) for number in numbers.split()])
        except ValueError:
            continue
    return values


def read_camera(number: int, rig: Rig, path: Path, age: float, moved: FloatArray | None = None) -> Camera:
    """Returns camera `number` with the image in `path`, `age` (s) older than the moment. `moved` `(4, 4)` leads from
    the ego frame of the exposure to that of the moment; None where they are the same.

    Raises `SceneError` where the camera has no calibration, and for an image that is missing, damaged, or not that of
    the camera that was calibrated.
    """
    mount = rig.cameras.get(number)
    if mount is None:
        raise SceneError(rig.faults[number])
    if not path.is_file():
        raise SceneError(f"{path}: there is no such image; fetch it")
    image, (width, height) = open_image(path)
    centre = mount.intrinsic[:2, 2]
    if mount.size not in (None, (width, height)) or not ((centre > 0) & (centre < (width, height))).all():
        wanted = f"of {mount.size[0]} x {mount.size[1]}" if mount.size else f"with its centre at {centre.tolist()}"
        raise SceneError(
            f"{mount.source}: is of an image {wanted}, but those of {path.parent} have {width} x {height} pixels: it "
            f"belongs to another rig; {AGAIN}"
        )
    extrinsic = mount.extrinsic if moved is None else moved @ mount.extrinsic
    camera = Camera(CAMERAS[number], (image,), np.array([-age]), mount.intrinsic, extrinsic, width, height)
    return checked(camera, mount.source)


def camera_of(projection: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Returns the intrinsic `(3, 3)` of a projection `(3, 4)`, and the transform `(4, 4)` from camera 0, rectified."""
    intrinsic = projection[:, :3]
    return intrinsic, rigid(np.eye(3), np.linalg.solve(intrinsic, projection[:, 3]))


def _rig(
    path: Path,
    values: Mapping[str, FloatArray],
    names: Mapping[int, str],
    rectification: FloatArray,
    velodyne: FloatArray,
    imu: FloatArray | None,
) -> Rig:
    """Returns the rig of a file's values, whose projections have `names` by the camera's number."""
    rectified = rigid(rectification, np.zeros(3))
    if not is_rigid(rectified):
        raise SceneError(f"{path}: R_rect: is no rotation; {AGAIN}")
    camera0_to_ego = VELODYNE @ invert(rectified @ velodyne)
    mounts: dict[int, Mount] = {}
    faults: dict[int, str] = {}
    for number, name in names.items():
        try:
            projection = _matrix(path, values, (name,), (3, 4))
            if (np.diag(projection)[:2] <= 0).any() or not np.allclose(projection[2, :3], [0.0, 0.0, 1.0]):
                raise SceneError(f"{path}: {name}: is no projection of a camera; {AGAIN}")
        except SceneError as error:
            faults[number] = str(error)
            continue
        intrinsic, from_camera0 = camera_of(projection)
        size = values.get(f"S_rect_{number:02d}")
        pixels = (round(size[0]), round(size[1])) if size is not None and len(size) == 2 else None
        mounts[number] = Mount(intrinsic, camera0_to_ego @ invert(from_camera0), pixels, f"{path}: {name}")
    to_imu = None if imu is None else invert(VELODYNE @ imu)
    return Rig(mounts, faults, camera0_to_ego, to_imu)


def _matrix(path: Path, values: Mapping[str, FloatArray], names: tuple[str, ...], shape: tuple[int, int]) -> FloatArray:
    """Returns the numbers of the first of `names` that is there. Raises `SceneError` where none is, or where they make
    no matrix of the shape.
    """
    name = next((name for name in names if name in values), None)
    if name is None:
        raise SceneError(f"{path}: {names[0]}: is missing; {AGAIN}")
    if values[name].size != shape[0] * shape[1] or not np.isfinite(values[name]).all():
        raise SceneError(f"{path}: {name}: {values[name].size} numbers are no {shape[0]} x {shape[1]} matrix; {AGAIN}")
    return values[name].reshape(shape)


def _transform(path: Path, values: Mapping[str, FloatArray], names: tuple[str, ...]) -> FloatArray:
    """Returns a transform `(4, 4)`. Raises `SceneError` where there is none, or no rotation."""
    matrix = np.r_[_matrix(path, values, names, (3, 4)), [[0.0, 0.0, 0.0, 1.0]]]
    if not is_rigid(matrix):
        raise SceneError(f"{path}: {names[0]}: is no rotation and place; {AGAIN}")
    return matrix


def _placed(path: Path) -> FloatArray:
    """Returns the transform `(4, 4)` of a file with a rotation `R` and a translation `T`."""
    values = read_numbers(path)
    matrix = rigid(_matrix(path, values, ("R",), (3, 3)), _matrix(path, values, ("T",), (3, 1))[:, 0])
    if not is_rigid(matrix):
        raise SceneError(f"{path}: R: is no rotation; {AGAIN}")
    return matrix
