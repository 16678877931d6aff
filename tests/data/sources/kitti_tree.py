"""Small trees in KITTI's official layouts, drawn here: the object benchmark, two raw drives and tracking sequences.

It imports nothing of the repository, so that pykitti reads the same trees in an environment of its own, see
`kitti_oracle.py`. All is deterministic.
"""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (124, 38)
DATE = "2011_09_26"
STRAIGHT, TURNING = 5, 9
"""Numbers of the raw drives: one straight at constant speed with the same stamp for all sensors of a frame; the other
along an arc, with stamps some milliseconds apart."""
FRAMES = 72
EARTH, LATITUDE, LONGITUDE = 6378137.0, 49.011212804408, 8.4228850417969
GONE = 30
"""The frame whose sweep the turning drive lacks."""
RECTIFICATION = np.array(
    [[0.9999238848686218, 0.009837759658694267, -0.007445048075169325],
     [-0.00986979529261589, 0.9999421238899231, -0.004278459120541811],
     [0.007402527146041393, 0.0043516140431165695, 0.999963104724884]]
)  # fmt: skip
VELO_TO_CAMERA = np.array(
    [[0.0075337449088692665, -0.9999713897705078, -0.00061660201754421, -0.004069766029715538],
     [0.01480249036103487, 0.0007280732970684767, -0.9998902082443237, -0.07631617784500122],
     [0.9998620748519897, 0.007523790001869202, 0.014807550236582756, -0.2717806100845337]]
)  # fmt: skip
IMU_TO_VELO = np.array(
    [[1.0, 0.0, 0.0, -0.81], [0.0, math.cos(0.0148), -math.sin(0.0148), 0.32],
     [0.0, math.sin(0.0148), math.cos(0.0148), -0.8]]
)  # fmt: skip
SHIFTS = {0: 0.0, 1: -38.75744, 2: 4.485728, 3: -33.95242}
"""The last column's first value of each camera's projection."""
OBJECTS = {
    "Car": ((12.0, 1.5, -1.6), 0.1, 2.0, (1.5, 1.7, 4.2)),
    "Person_sitting": ((8.0, -3.0, -1.7), 1.2, 0.0, (1.2, 0.6, 0.8)),
    "Tram": ((30.0, 6.0, -1.8), 0.0, 5.0, (3.4, 2.6, 15.0)),
}
"""Class, place of the bottom in the Velodyne's frame, yaw, speed ahead of the ego (m/s) and height, width, length."""


def numbers(values: np.ndarray) -> str:
    return " ".join(repr(float(value)) for value in np.asarray(values).ravel())


def projection(camera: int, is_exact: bool = True) -> np.ndarray:
    """A projection `(3, 4)`; those of the benchmarks have an offset in all three directions."""
    rest = (0.0, 0.0) if is_exact else (0.02163791, 0.002745884)
    return np.array(
        [[72.15377, 0.0, 60.95593, SHIFTS[camera]], [0.0, 72.15377, 17.2854, rest[0]], [0, 0, 1.0, rest[1]]]
    )


def picture(shade: int, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, SIZE, shade if mode == "L" else (shade, 90, 60)).save(file, "PNG")
    return file.getvalue()


def sweep(number: int) -> bytes:
    """64 points, a few in the car and on the seat."""
    rng = np.random.default_rng(number)
    points = np.c_[rng.uniform(-40, 40, (64, 2)), rng.uniform(-1.7, 2, 64), rng.uniform(0, 1, 64)]
    x = OBJECTS["Car"][0][0] + OBJECTS["Car"][2] * number / 10
    points[:5, :3] = np.array([x, 1.5, -0.9]) + rng.uniform(-0.3, 0.3, (5, 3))
    points[5:7, :3] = np.array([8.0, -3.0, -1.1]) + rng.uniform(-0.1, 0.1, (2, 3))
    return points.astype("<f4").tobytes()


def objects_at(number: int) -> list[tuple[str, np.ndarray, float, tuple[float, float, float]]]:
    """The objects of a frame: class, bottom in the Velodyne's frame, yaw and size."""
    return [(name, np.array(place) + np.array([speed * number / 10, 0, 0]), yaw, size)
            for name, (place, yaw, speed, size) in OBJECTS.items()]  # fmt: skip


def way(drive: int, time: float) -> tuple[float, float, float, float, float, float]:
    """x (east), y (north), z, roll, pitch, yaw of the IMU, relative to the first place."""
    if drive == TURNING:
        travelled, curvature = 6.0 * time + 0.2 * time**2, 0.01
        angle = 0.5 + curvature * travelled
        x = (math.sin(angle) - math.sin(0.5)) / curvature
        y = (math.cos(0.5) - math.cos(angle)) / curvature
        return x, y, 0.1 * time, 0.012 + 0.001 * math.sin(time), -0.02, angle
    return 8.0 * time * math.cos(0.4), 8.0 * time * math.sin(0.4), 0.0, 0.0, 0.0, 0.4


def packet(drive: int, time: float) -> str:
    """A line of `oxts` at `time` (s): the way, projected back to latitude and longitude."""
    x, y, z, *angles = way(drive, time)
    scale = math.cos(math.radians(LATITUDE)) * EARTH
    north = math.log(math.tan(math.pi / 4 + math.radians(LATITUDE) / 2)) + y / scale
    latitude = math.degrees(2 * math.atan(math.exp(north)) - math.pi / 2)
    longitude = LONGITUDE + math.degrees(x / scale)
    rest = [0.0] * 19 + [4, 11, 6, 6, 6]
    return " ".join(map(repr, [latitude, longitude, 116.4 + z, *angles, *rest])) + "\n"


def stamp(nanoseconds: int) -> str:
    """A time of the day as the dataset writes it."""
    return str(np.datetime64("2011-09-26T13:02:25.000000000", "ns") + nanoseconds).replace("T", " ")


def stamps_of(drive: int) -> dict[str, list[int]]:
    """The stamps (ns) of each sensor by its folder, relative to the drive's start."""
    late = drive == TURNING
    base = [100_000_000 * k + (k * 7_919) % 11 * 100_000 * late for k in range(FRAMES)]
    shifts = {"oxts": 0, "velodyne_points": -9_000_000 * late,
              **{f"image_{n:02d}": (4_000_000 + n * 100_000) * late for n in range(4)}}  # fmt: skip
    return {name: [time + shift for time in base] for name, shift in shifts.items()}


def write_raw(root: Path, drives: tuple[int, ...] = (STRAIGHT, TURNING), frames: int = FRAMES) -> Path:
    """Writes the first `frames` of drives below `root`. Returns the folder of their day."""
    day = root / DATE
    day.mkdir(parents=True)
    lines = ["calib_time: 09-Jan-2012 13:57:47", "corner_dist: 9.950000e-02"]
    for camera in range(4):
        rotation = f"R_rect_{camera:02d}: {numbers(RECTIFICATION)}"
        lines += [f"S_{camera:02d}: 139.2 51.2", rotation]
        lines += [f"P_rect_{camera:02d}: {numbers(projection(camera))}", f"S_rect_{camera:02d}: {numbers(SIZE)}"]
    (day / "calib_cam_to_cam.txt").write_text("\n".join(lines) + "\n")
    for name, matrix in (("velo_to_cam", VELO_TO_CAMERA), ("imu_to_velo", IMU_TO_VELO)):
        text = f"calib_time: 25-May-2012 16:47:16\nR: {numbers(matrix[:, :3])}\nT: {numbers(matrix[:, 3])}\n"
        (day / f"calib_{name}.txt").write_text(text)
    for drive in drives:
        _write_drive(day / f"{DATE}_drive_{drive:04d}_sync", drive, frames)
    return day


def _write_drive(folder: Path, drive: int, frames: int) -> None:
    stamps = {name: times[:frames] for name, times in stamps_of(drive).items()}
    lacks = {GONE} if drive == TURNING else set()
    for name, times in stamps.items():
        (folder / name / "data").mkdir(parents=True)
        blank = lacks if name == "velodyne_points" else set()
        (folder / name / "timestamps.txt").write_text(
            "".join("\n" if k in blank else f"{stamp(time)}\n" for k, time in enumerate(times))
        )
    start = stamps["velodyne_points"]
    for name, shift in (("timestamps_start", -51_000_000), ("timestamps_end", 51_000_000)):
        lines = ("\n" if k in lacks else f"{stamp(time + shift)}\n" for k, time in enumerate(start))
        (folder / "velodyne_points" / f"{name}.txt").write_text("".join(lines))
    for k in range(frames):
        (folder / "oxts" / "data" / f"{k:010d}.txt").write_text(packet(drive, stamps["oxts"][k] * 1e-9))
        if k not in lacks:
            (folder / "velodyne_points" / "data" / f"{k:010d}.bin").write_bytes(sweep(k))
        for camera in range(4):
            image = picture(k + camera, "L" if camera < 2 else "RGB")
            (folder / f"image_{camera:02d}" / "data" / f"{k:010d}.png").write_bytes(image)
    items = []
    for place, name in enumerate(OBJECTS):
        poses = [objects_at(k)[place] for k in range(frames)]
        steps = "".join(
            f"<item><tx>{p[0]!r}</tx><ty>{p[1]!r}</ty><tz>{p[2]!r}</tz><rx>0</rx><ry>0</ry><rz>{yaw!r}</rz>"
            "<state>2</state></item>"
            for _, at, yaw, _ in poses
            for p in [at.tolist()]
        )
        height, width, length = OBJECTS[name][3]
        items.append(
            f"<item><objectType>{name}</objectType><h>{height}</h><w>{width}</w><l>{length}</l>"
            f"<first_frame>0</first_frame><poses><count>{frames}</count>{steps}</poses></item>"
        )
    (folder / "tracklet_labels.xml").write_text(
        f"<?xml version='1.0'?><boost_serialization><tracklets><count>{len(items)}</count>{''.join(items)}"
        "</tracklets></boost_serialization>"
    )


def label(name: str, bottom: np.ndarray, yaw: float, size: tuple[float, float, float]) -> str:
    """A row of labels of an object whose bottom `(3,)` and yaw are in the Velodyne's frame."""
    turn = RECTIFICATION @ VELO_TO_CAMERA[:, :3]
    place = turn @ bottom + RECTIFICATION @ VELO_TO_CAMERA[:, 3]
    ahead = turn @ np.array([math.cos(yaw), math.sin(yaw), 0.0])
    return f"{name} 0.00 0 -1.57 1.0 2.0 30.0 20.0 {numbers(size)} {numbers(place)} {math.atan2(-ahead[2], ahead[0])!r}"


DONT_CARE = "DontCare -1 -1 -10 5.0 6.0 9.0 9.0 -1 -1 -1 -1000 -1000 -1000 -10"


def calibration(is_tracking: bool = False) -> str:
    """The calibration file of a frame, or of a sequence, whose writers name three fields in another way."""
    names = (
        ("R_rect", "Tr_velo_cam", "Tr_imu_velo") if is_tracking else ("R0_rect:", "Tr_velo_to_cam:", "Tr_imu_to_velo:")
    )
    lines = [f"P{camera}: {numbers(projection(camera, False))}" for camera in range(4)]
    lines += [
        f"{name} {numbers(m)}" for name, m in zip(names, (RECTIFICATION, VELO_TO_CAMERA, IMU_TO_VELO), strict=True)
    ]
    return "\n".join(lines) + "\n"


def write_object(root: Path, frames: tuple[int, ...] = tuple(range(12)), lists: bool = True) -> Path:
    """Writes the object benchmark with `frames`, of which the last three are those of `val.txt`. Returns `training`."""
    folder = root / "training"
    for name in ("image_2", "image_3", "velodyne", "calib", "label_2"):
        (folder / name).mkdir(parents=True)
    for k in frames:
        rows = [label(*each) for each in objects_at(k)] + [DONT_CARE]
        (folder / "label_2" / f"{k:06d}.txt").write_text("\n".join(rows) + "\n")
        (folder / "calib" / f"{k:06d}.txt").write_text(calibration())
        (folder / "velodyne" / f"{k:06d}.bin").write_bytes(sweep(k))
        for number in (2, 3):
            (folder / f"image_{number}" / f"{k:06d}.png").write_bytes(picture(k + number))
    if lists:
        (root / "ImageSets").mkdir()
        for name, chosen in (("train", frames[:-3]), ("val", frames[-3:])):
            (root / "ImageSets" / f"{name}.txt").write_text("".join(f"{k:06d}\n" for k in chosen))
    return folder


def write_tracking(root: Path, sequences: tuple[int, ...] = (0, 1), part: str = "training") -> Path:
    """Writes sequences of the tracking benchmark. Returns the folder `part`."""
    folder = root / part
    for sequence in sequences:
        name = f"{sequence:04d}"
        for place in ("image_02", "velodyne"):
            (folder / place / name).mkdir(parents=True)
        for place in ("calib", "oxts", "label_02"):
            (folder / place).mkdir(exist_ok=True)
        (folder / "calib" / f"{name}.txt").write_text(calibration(is_tracking=True))
        (folder / "oxts" / f"{name}.txt").write_text("".join(packet(STRAIGHT, k / 10) for k in range(FRAMES)))
        rows = []
        for k in range(FRAMES):
            rows += [f"{k} {track} {label(*each)}" for track, each in enumerate(objects_at(k))]
            rows.append(f"{k} -1 {DONT_CARE}")
            (folder / "image_02" / name / f"{k:06d}.png").write_bytes(picture(k))
            (folder / "velodyne" / name / f"{k:06d}.bin").write_bytes(sweep(k))
        if part == "training":
            (folder / "label_02" / f"{name}.txt").write_text("\n".join(rows) + "\n")
    return folder
