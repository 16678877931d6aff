"""A small Argoverse 2 sensor log in the published layout: a turning vehicle, tiny pictures, two LiDARs, three tracks.

It is the same to the bit on every call, so that the figures which av2 computes from it hold for every test.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import feather

NAME = "7c696054-aaaa-4000-8000-000000000001"
START = 315_970_000_000_000_000
SECOND, SWEEP, SHUTTER, POSE = 1_000_000_000, 100_000_000, 50_000_000, 5_000_000
LENGTH = 8 * SECOND
SIZES = {"ring_front_center": (62, 82)}
CAMERAS = {
    "ring_front_center": 0.0,
    "ring_front_left": 0.8,
    "ring_front_right": -0.8,
    "ring_side_left": 1.7,
    "ring_side_right": -1.7,
    "ring_rear_left": 2.7,
    "ring_rear_right": -2.7,
    "stereo_front_left": 0.02,
    "stereo_front_right": -0.02,
}
"""Which way each camera looks (rad)."""
LATE = 5_000_000
"""How much later (ns) each camera is exposed than the one before it."""
TRACKS = (("REGULAR_VEHICLE", 12.0, 3.0), ("PEDESTRIAN", 6.0, -4.0), ("SIGN", 20.0, 6.0))


def write_log(root: Path, name: str = NAME, seconds: float = LENGTH / SECOND, every: int = 5) -> Path:
    """Writes the log below `root` and returns its folder. Sensors exist at the start of each second, `every` sweeps and
    ten images per camera around it in all; annotations at each sweep's time.
    """
    log, rng = root / name, np.random.default_rng(7)
    for folder in ("calibration", "map", "sensors/lidar"):
        (log / folder).mkdir(parents=True)
    end = START + round(seconds * SECOND)
    stamps = np.arange(START - 2 * POSE, end + 1, POSE, dtype=np.int64)
    write(log / "city_SE3_egovehicle.feather", {"timestamp_ns": stamps, **_transforms(*_drive(stamps))})
    moments = np.arange(START, end + 1, SWEEP, dtype=np.int64)
    _write_annotations(log, moments)
    for moment in moments[:every].tolist():
        write(log / "sensors" / "lidar" / f"{moment}.feather", _sweep(rng))
    _write_cameras(log, rng, every)
    (log / "map" / f"log_map_archive_{name}____PIT_city_1.json").write_text(json.dumps(vector_map()))
    (log / "map" / f"{name}___img_Sim2_city.json").write_text(json.dumps({"R": [1, 0, 0, 1], "t": [0, 0], "s": 1.0}))
    np.save(log / "map" / f"{name}_ground_height_surface____PIT.npy", np.zeros((2, 2), dtype=np.float16))
    return log


def write(path: Path, columns: dict[str, Any]) -> None:
    """Writes a Feather file; an existing one is replaced."""
    path.unlink(missing_ok=True)
    feather.write_feather(pa.table(columns), path, compression="uncompressed")


def quaternions(yaw: Any, pitch: Any = 0.0, roll: Any = 0.0) -> np.ndarray[Any, Any]:
    """w, x, y, z of a rotation by roll about x, then pitch about y, then yaw about z."""
    cy, sy, cp, sp = np.cos(yaw / 2), np.sin(yaw / 2), np.cos(pitch / 2), np.sin(pitch / 2)
    cr, sr = np.cos(roll / 2), np.sin(roll / 2)
    w, x = cr * cp * cy + sr * sp * sy, sr * cp * cy - cr * sp * sy
    return np.stack(np.broadcast_arrays(w, x, cr * sp * cy + sr * cp * sy, cr * cp * sy - sr * sp * cy), axis=-1)


def _drive(stamps: Any) -> tuple[Any, Any]:
    """Quaternions and positions in the city: 8 m/s, turning left at 0.1 rad/s, on a slight slope."""
    seconds = (stamps - START) / SECOND
    yaw = 0.5 + 0.1 * seconds
    x, y = 80.0 * (np.sin(yaw) - np.sin(0.5)) + 1500.0, -80.0 * (np.cos(yaw) - np.cos(0.5)) + 220.0
    return quaternions(yaw, -0.02, 0.01), np.stack([x, y, 12.0 + 0.1 * seconds], axis=-1)


def _transforms(quaternion: Any, place: Any) -> dict[str, Any]:
    names = ("qw", "qx", "qy", "qz", "tx_m", "ty_m", "tz_m")
    return dict(zip(names, np.concatenate([quaternion, place], axis=-1).T.copy(), strict=True))


def _write_annotations(log: Path, moments: Any) -> None:
    count = len(moments)
    seconds = (moments - START) / SECOND
    columns: dict[str, list[Any]] = {}
    for number, (category, x, y) in enumerate(TRACKS):
        places = np.stack([x - 0.5 * seconds, y + 0 * seconds, np.full(count, 0.6)], axis=1)
        rows = {
            "timestamp_ns": moments,
            "track_uuid": np.array([f"0000000{number}-0000-4000-8000-000000000000"] * count, dtype=object),
            "category": np.array([category] * count, dtype=object),
            "length_m": np.full(count, 4.0 - number),
            "width_m": np.full(count, 1.8 - 0.5 * number),
            "height_m": np.full(count, 1.6),
            **_transforms(quaternions(0.3 * number + 0.05 * seconds), places),
            "num_interior_pts": np.full(count, 3 - number, dtype=np.int64),
        }
        for key, value in rows.items():
            columns.setdefault(key, []).append(value)
    write(log / "annotations.feather", {key: np.concatenate(parts) for key, parts in columns.items()})


def _sweep(rng: np.random.Generator) -> dict[str, Any]:
    count = 64
    points = rng.uniform(-40, 40, (count, 3)) * [1, 1, 0.05]
    return {
        **dict(zip("xyz", points.astype(np.float16).T, strict=True)),
        "intensity": rng.integers(0, 256, count).astype(np.uint8),
        "laser_number": (np.arange(count) % 64).astype(np.uint8),
        "offset_ns": np.sort(rng.integers(0, SWEEP, count)).astype(np.int32),
    }


def _write_cameras(log: Path, rng: np.random.Generator, every: int) -> None:
    names, sizes = list(CAMERAS), [SIZES.get(name, (82, 62)) for name in CAMERAS]
    yaws, number = np.array(list(CAMERAS.values())), np.arange(len(CAMERAS))
    columns = {
        "sensor_name": np.array(names, dtype=object),
        "fx_px": 60.0 + number,
        "fy_px": 60.5 + number,
        "cx_px": np.array([w / 2 + 0.3 for w, _ in sizes]),
        "cy_px": np.array([h / 2 - 0.2 for _, h in sizes]),
        "k1": np.full(len(names), -0.25),
        "k2": np.full(len(names), 0.1),
        "k3": np.full(len(names), -0.03),
        "height_px": np.array([h for _, h in sizes], dtype=np.int64),
        "width_px": np.array([w for w, _ in sizes], dtype=np.int64),
    }
    write(log / "calibration" / "intrinsics.feather", columns)
    looking = _times(quaternions(yaws, 0.03), np.array([0.5, -0.5, 0.5, -0.5]))  # to x right, y down, z forward
    places = np.stack([1.5 + 0.1 * np.cos(yaws), 0.3 * np.sin(yaws), np.full(len(names), 1.4)], axis=1)
    turned = np.concatenate([looking, quaternions(np.array([0.0, 0.1]), 0.0, np.array([0.0, np.pi]))])
    placed = np.concatenate([places, [[1.3, 0.0, 1.6], [1.3, 0.0, 1.5]]])
    sensors = np.array([*names, "up_lidar", "down_lidar"], dtype=object)
    write(
        log / "calibration" / "egovehicle_SE3_sensor.feather", {"sensor_name": sensors, **_transforms(turned, placed)}
    )
    for place, (name, size) in enumerate(zip(names, sizes, strict=True)):
        folder = log / "sensors" / "cameras" / name
        folder.mkdir(parents=True)
        for frame in range(2 * every):
            encoded = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)).save(encoded, "JPEG")
            (folder / f"{START + frame * SHUTTER - SHUTTER // 2 + place * LATE}.jpg").write_bytes(encoded.getvalue())


def _times(one: Any, other: Any) -> Any:
    """Products of quaternions `(..., 4)`."""
    a, b, c, d = np.moveaxis(one, -1, 0)
    e, f, g, h = np.moveaxis(other, -1, 0)
    parts = [a * e - b * f - c * g - d * h, a * f + b * e + c * h - d * g]
    return np.stack([*parts, a * g - b * h + c * e + d * f, a * h + b * g - c * f + d * e], axis=-1)


def vector_map() -> dict[str, Any]:
    """A square drivable area around the drive, two lanes and a crossing."""

    def points(*corners: tuple[float, float]) -> list[dict[str, float]]:
        return [{"x": x, "y": y, "z": 12.0} for x, y in corners]

    area = points((1450, 170), (1650, 170), (1650, 370), (1450, 370))
    lane = {
        "is_intersection": False,
        "lane_type": "VEHICLE",
        "left_lane_boundary": points((1500, 222), (1560, 262)),
        "left_lane_mark_type": "NONE",
        "right_lane_boundary": points((1500, 218), (1560, 258)),
        "right_lane_mark_type": "NONE",
        "successors": [],
        "predecessors": [],
        "right_neighbor_id": None,
        "left_neighbor_id": None,
    }
    crossing = {"id": 9, "edge1": points((1520, 230), (1525, 240)), "edge2": points((1523, 229), (1528, 239))}
    return {
        "drivable_areas": {"1": {"id": 1, "area_boundary": area}},
        "lane_segments": {"2": {"id": 2, **lane}, "3": {"id": 3, **lane}},
        "pedestrian_crossings": {"9": crossing},
    }
