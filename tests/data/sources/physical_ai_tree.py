"""A small download of PhysicalAI-Autonomous-Vehicles: three clips of a turning vehicle, two of them in zip archives.

It is the same on every call, so that the figures which the dataset's own library computes from it hold for every test.
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from framework.scene.video import write_clip
from tests.data.sources.argoverse_tree import quaternions

CLIPS = {
    "11111111-0000-4000-8000-000000000000": (0, "train"),
    "22222222-0000-4000-8000-000000000000": (0, "val"),
    "33333333-0000-4000-8000-000000000000": (12, "test"),
}
"""Chunk and split of each; the last is unpacked, as some download it."""
SECONDS, RATE = 8.0, 10
CAMERAS = {"camera_front_wide_120fov": 0.0, "camera_cross_left_120fov": 1.0}
"""Which way each camera looks (rad)."""
RADARS = {"radar_front_center_srr_0": 0.0, "radar_corner_rear_left_srr_0": 2.4}
POLYNOMIAL = (0.0, 30.0, 0.5, -1.2, 0.1)
SPEED, TURN = 8.0, 0.1
LATE = {"camera_front_wide_120fov": 7_000, "camera_cross_left_120fov": 19_000}
"""How much later (us) than a tenth of a second each camera is exposed."""
TRACKS = (("automobile", 14.0, 3.0), ("Person", 7.0, -4.0), ("protruding_object", 20.0, 6.0))


def write_download(root: Path, clips: dict[str, tuple[int, str]] = CLIPS) -> Path:
    """Writes the download below `root` and returns its folder."""
    folder = root / "physical_ai"
    folder.mkdir(parents=True)
    names = [*clips, "99999999-0000-4000-8000-000000000000"]  # the last is not downloaded
    chunks, splits = zip(*(*clips.values(), (7, "train")), strict=True)
    _indexed(folder / "clip_index.parquet", {"clip_id": names}, {"chunk": list(chunks), "split": list(splits)})
    for number, (clip, (chunk, _)) in enumerate(clips.items()):
        for feature, ending, content in _parts(np.random.default_rng(number), number):
            member = f"{clip}.{Path(feature).name}.{ending}"
            if chunk:
                (folder / feature).mkdir(parents=True, exist_ok=True)
                (folder / feature / member).write_bytes(content)
            else:
                archive = folder / feature / f"{Path(feature).name}.chunk_{chunk:04d}.zip"
                archive.parent.mkdir(parents=True, exist_ok=True)
                with zipfile.ZipFile(archive, "a") as file:
                    file.writestr(member, content)
    for chunk in {chunk for chunk, _ in clips.values()}:
        _write_calibration(folder, [clip for clip, (own, _) in clips.items() if own == chunk], chunk)
    return folder


def _parts(rng: np.random.Generator, number: int) -> list[tuple[str, str, bytes]]:
    """Feature, ending and content of each file of a clip."""
    parts = [("labels/egomotion", "parquet", _table(_egomotion(number)))]
    parts.append(("labels/obstacle.offline", "parquet", _table(_obstacles())))
    for name in CAMERAS:
        stamps = np.arange(0, int(SECONDS * 1e6), 100_000, dtype=np.int64) + LATE[name]
        parts.append((f"camera/{name}", "mp4", _video(len(stamps), number)))
        parts.append((f"camera/{name}", "timestamps.parquet", _table({"timestamp": stamps})))
        parts.append((f"camera/{name}", "blurred_boxes.parquet", _table({"frame_index": [0]})))
    parts.append(("lidar/lidar_top_360fov", "parquet", _table(_turns(rng))))
    parts += [(f"radar/{name}", "parquet", _table(_scans(rng))) for name in RADARS]
    return parts


def _table(columns: dict[str, Any]) -> bytes:
    written = io.BytesIO()
    parquet.write_table(pa.table(columns), written)
    return written.getvalue()


def _indexed(path: Path, index: dict[str, list[str]], columns: dict[str, Any]) -> None:
    """Writes a table as pandas does, with its index as columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({**columns, **index})
    kinds = {name: ("unicode", "object") if name in index else ("float64", "float64") for name in table.schema.names}
    described = [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
        for name, (kind, numpy) in kinds.items()
    ]
    pandas = {"index_columns": list(index), "column_indexes": [], "columns": described}
    parquet.write_table(table.replace_schema_metadata({"pandas": json.dumps(pandas)}), path)


def drive(seconds: Any, number: int = 0) -> tuple[Any, Any]:
    """Quaternions w, x, y, z and positions at times, in the frame of the clip's start: a bend at a steady speed."""
    turn = TURN * (1 - number)
    yaw = turn * seconds
    x = SPEED * seconds if turn == 0 else SPEED / turn * np.sin(yaw)
    y = 0 * seconds if turn == 0 else SPEED / turn * (1 - np.cos(yaw))
    return quaternions(yaw, -0.02, 0.01), np.stack([x, y, 0.05 * seconds], axis=-1)


def _egomotion(number: int) -> dict[str, Any]:
    stamps = np.arange(-200_000, int(SECONDS * 1e6) + 200_001, 10_000, dtype=np.int64)
    quaternion, place = drive(stamps / 1e6, number)
    columns = dict(zip(("qw", "qx", "qy", "qz"), quaternion.T, strict=True))
    columns |= dict(zip("xyz", place.T, strict=True))
    velocity = {f"v{axis}": np.gradient(place[:, i], stamps / 1e6) for i, axis in enumerate("xyz")}
    still = dict.fromkeys(("ax", "ay", "az", "curvature"), np.zeros(len(stamps)))
    return {"timestamp": stamps, **columns, **velocity, **still}


def _obstacles() -> dict[str, Any]:
    """Each label has a time of its own, on a row of the poses."""
    rows: dict[str, list[Any]] = {}
    for track, (kind, x, y) in enumerate(TRACKS):
        for stamp in range(track * 20_000, int(SECONDS * 1e6), 100_000):
            seconds = stamp / 1e6
            quaternion = quaternions(np.array(0.3 * track + 0.02 * seconds))
            row = {"track_id": f"{track}", "timestamp_us": stamp, "label_class": kind}
            row |= {"center_x": x - 0.5 * seconds, "center_y": y, "center_z": 0.8}
            row |= {"size_x": 4.0 - track, "size_y": 1.8 - 0.5 * track, "size_z": 1.6}
            row |= {f"orientation_{axis}": float(quaternion[i]) for i, axis in enumerate("wxyz")}
            for name, value in row.items():
                rows.setdefault(name, []).append(value)
    return rows


def _video(count: int, number: int) -> bytes:
    """Frames whose left half tells their place, and whose right half the clip."""

    def images() -> Any:
        for place in range(count):
            pixels = np.zeros((48, 64, 3), dtype=np.uint8)
            pixels[:, :32, 0], pixels[:, 32:, 1] = 20 + 2 * place, 60 + 40 * number
            yield Image.fromarray(pixels)

    written = io.BytesIO()
    write_clip(written, images(), (64, 48), RATE, key_every=10)
    return written.getvalue()


def _turns(rng: np.random.Generator, points: int = 48) -> dict[str, Any]:
    import DracoPy

    stamps = np.arange(0, int(SECONDS * 1e6), 100_000, dtype=np.int64)
    turns = []
    for _ in stamps:
        places = rng.uniform(-30, 30, (points, 3)).astype(np.float32) * np.array([1, 1, 0.05], dtype=np.float32)
        after = np.linspace(0.0, 99_000.0, points)
        raw = np.round((105_000.0 - after) / 210_000.0 * 65_535.0).astype(np.int64)
        colours = np.stack([rng.integers(0, 256, points), raw & 255, raw >> 8], axis=1).astype(np.uint8)
        turns.append(DracoPy.encode(places, colors=colours, quantization_bits=16, preserve_order=True))
    return {"reference_timestamp": stamps, "draco_encoded_pointcloud": pa.array(turns, pa.binary())}


def _scans(rng: np.random.Generator, returns: int = 6) -> dict[str, Any]:
    stamps = np.repeat(np.arange(3_000, int(SECONDS * 1e6), 50_000, dtype=np.int64), returns)
    count = len(stamps)
    return {
        "scan_index": np.arange(count) // returns,
        "timestamp": stamps,
        "sensor_timestamp": stamps,
        "azimuth": rng.uniform(-1, 1, count).astype(np.float32),
        "elevation": rng.uniform(-0.1, 0.1, count).astype(np.float32),
        "distance": rng.uniform(2, 60, count).astype(np.float32),
        "radial_velocity": rng.uniform(-9, 0, count).astype(np.float32),
        "rcs": rng.uniform(-10, 20, count).astype(np.float32),
        "snr": np.ones(count, dtype=np.float32),
        "exist_probb": np.ones(count, dtype=np.float32),
    }


def _write_calibration(folder: Path, clips: list[str], chunk: int) -> None:
    """Cameras look along their own z; all others along their own x."""
    sensors = {**CAMERAS, **RADARS, "lidar_top_360fov": 0.1}
    extrinsics: dict[str, list[Any]] = {}
    intrinsics: dict[str, list[Any]] = {}
    for _ in clips:
        for name, yaw in sensors.items():
            quaternion = quaternions(np.array(yaw))
            if name in CAMERAS:
                quaternion = _product(quaternion, np.array([0.5, -0.5, 0.5, -0.5]))
            row = dict(zip(("qw", "qx", "qy", "qz"), quaternion.tolist(), strict=True))
            for key, value in (row | {"x": 1.0 + yaw, "y": 0.1, "z": 1.6}).items():
                extrinsics.setdefault(key, []).append(value)
            if name in CAMERAS:
                camera = {"width": 64.0, "height": 48.0, "cx": 31.5, "cy": 24.5}
                camera |= {f"fw_poly_{power}": value for power, value in enumerate(POLYNOMIAL)}
                for key, value in (camera | {f"bw_poly_{power}": 0.0 for power in range(5)}).items():
                    intrinsics.setdefault(key, []).append(value)
    for feature, names, columns in (
        ("sensor_extrinsics", list(sensors), extrinsics),
        ("camera_intrinsics", list(CAMERAS), intrinsics),
    ):
        key = "sensor_name" if feature == "sensor_extrinsics" else "camera_name"
        index = {"clip_id": [clip for clip in clips for _ in names], key: names * len(clips)}
        _indexed(folder / "calibration" / feature / f"{feature}.chunk_{chunk:04d}.parquet", index, columns)


def _product(one: Any, other: Any) -> Any:
    w, x, y, z = one
    a, b, c, d = other
    return np.array([w * a - x * b - y * c - z * d, w * b + x * a + y * d - z * c,
                     w * c - x * d + y * a + z * b, w * d + x * c - y * b + z * a])  # fmt: skip
