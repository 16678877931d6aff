"""The Arrow files of a 123D log: a file a modality, whose schema carries its description as MessagePack.

logs/SPLIT/LOG/sync.arrow             the log's description, and a row an iteration
logs/SPLIT/LOG/ego_state_se3.arrow    poses of the IMU
logs/SPLIT/LOG/box_detections_se3.arrow, traffic_light_detections.arrow
logs/SPLIT/LOG/camera.ID.arrow        images as JPEG or PNG, or numbers of frames in camera.ID.mp4
logs/SPLIT/LOG/lidar.ID.arrow         sweeps, their points in the frame of the IMU
logs/SPLIT/LOG/map.arrow, or maps/DATASET/DATASET_LOCATION.arrow
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import ipc

from framework.data.sources.arrow import reads
from framework.data.sources.tracks import Nanoseconds
from framework.scene.types import FloatArray, SceneError

SYNC, EGO, BOXES, LIGHTS = "sync", "ego_state_se3", "box_detections_se3", "traffic_light_detections"
CAMERA, LIDAR, MAP = "camera.", "lidar.", "map"
MICROSECOND = 1000
AGAIN = "convert the log again"


@dataclass(frozen=True, slots=True)
class Table:
    """A modality of a log, mapped into memory."""

    path: Path
    """The file."""
    rows: pa.Table
    """Its rows."""
    about: Mapping[str, Any]
    """Its description."""

    @property
    def key(self) -> str:
        """The modality: the first part of its columns' names."""
        return self.path.stem

    def column(self, name: str) -> pa.ChunkedArray:
        """Returns a column. Raises `SceneError` where it is missing."""
        full = f"{self.key}.{name}"
        if full not in self.rows.schema.names:
            raise SceneError(f"{self.path}: column {full}: is missing; {AGAIN} with py123d 0.7")
        return self.rows[full]

    def has(self, name: str) -> bool:
        """Returns whether there is a column."""
        return f"{self.key}.{name}" in self.rows.schema.names

    def times(self, name: str = "timestamp_us") -> Nanoseconds:
        """Returns the times (ns) of the rows. Raises `SceneError` where they are no times in order."""
        times = self.column(name).to_numpy()
        if times.dtype.kind != "i" or (np.diff(times) < 0).any():
            raise SceneError(f"{self.path}: {name}: not in the order of time; {AGAIN}")
        return times.astype(np.int64) * MICROSECOND

    def vectors(self, name: str, size: int) -> FloatArray:
        """Returns a column of lists of numbers `(n, size)`. Raises `SceneError` where a list has another length."""
        column = self.column(name).combine_chunks()
        try:
            return np.asarray(column.flatten(), dtype=np.float64).reshape(len(column), size)
        except (ValueError, AttributeError) as error:
            raise SceneError(f"{self.path}: column {name}: holds no lists of {size} numbers; {AGAIN}") from error


def read_table(path: Path) -> Table:
    """Returns a modality. Raises `SceneError` where its file is missing or damaged."""
    with reads(path, AGAIN):
        rows = ipc.open_file(pa.memory_map(str(path))).read_all()
    try:
        about = msgpack.unpackb((rows.schema.metadata or {})[b"metadata"], strict_map_key=False)
    except KeyError as error:
        raise SceneError(f"{path}: metadata: the schema has no description; {AGAIN}") from error
    except (ValueError, msgpack.UnpackException) as error:
        raise SceneError(f"{path}: metadata: is cut short or damaged ({error}); {AGAIN}") from error
    if not isinstance(about, dict):
        raise SceneError(f"{path}: metadata: is a {type(about).__name__}, not entries by name; {AGAIN}")
    return Table(path, rows, about)


def decode_points(blob: bytes) -> tuple[FloatArray, npt.NDArray[Any] | None]:
    """Returns the points `(n, 3)` of a sweep and their intensity `(n,)`, 0 to 1; None where it has none. Raises
    `SceneError` for LAZ, and for what is damaged.
    """
    try:
        if blob.startswith(b"DRACO"):
            points, named = _decode_draco(blob)
        elif blob.startswith(b"\xff\xff\xff\xff"):
            columns = ipc.open_stream(blob).read_all()
            points = np.stack([columns[axis].to_numpy() for axis in "xyz"], axis=1)
            named = {name: columns[name].to_numpy() for name in columns.schema.names}
        else:
            raise SceneError("points are neither IPC nor Draco; convert the log with lidar_codec ipc_zstd or draco")
    except (pa.ArrowException, KeyError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, SceneError):
            raise
        raise SceneError(f"points that are damaged ({error}); {AGAIN}") from error
    intensity = named.get("intensity")
    if intensity is not None:
        whole = np.issubdtype(intensity.dtype, np.integer)
        intensity = np.clip(intensity.astype(np.float64).reshape(-1) / (255.0 if whole else 1.0), 0.0, 1.0)
    return points.astype(np.float64), intensity


def _decode_draco(blob: bytes) -> tuple[FloatArray, dict[str, npt.NDArray[Any]]]:
    try:
        import DracoPy
    except ImportError as error:
        raise SceneError("points are in Draco; install the extra: uv sync --extra physical_ai") from error
    try:
        cloud = DracoPy.decode(blob)
    except Exception as error:  # it has exceptions of its own for damage
        raise SceneError(f"points that are damaged ({error}); {AGAIN}") from error
    named = {part["name"]: np.asarray(part["data"]) for part in cloud.attributes or [] if part.get("name")}
    return np.asarray(cloud.points).reshape(-1, 3), named
