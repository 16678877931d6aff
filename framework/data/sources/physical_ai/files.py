"""The files of PhysicalAI-Autonomous-Vehicles: clips bundled in chunks as downloaded, or unpacked next to the archives.

clip_index.parquet                                     each clip's chunk and split
calibration/FEATURE/FEATURE.chunk_0000.parquet         rows of a chunk's clips
camera/FEATURE/FEATURE.chunk_0000.zip                  CLIP.FEATURE.mp4 and CLIP.FEATURE.timestamps.parquet
lidar/..., radar/..., labels/..., likewise             CLIP.FEATURE.parquet
camera/FEATURE/CLIP.FEATURE.mp4                        the same, unpacked
"""

from __future__ import annotations

import functools
import io
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import parquet

from framework.data.sources.arrow import reads
from framework.data.sources.base import LogSplit
from framework.data.sources.tracks import Nanoseconds
from framework.scene.types import SceneError

INDEX = "clip_index.parquet"
AGAIN = "download it again"
EGOMOTION, OBSTACLES, LIDAR = "labels/egomotion", "labels/obstacle.offline", "lidar/lidar_top_360fov"
INTRINSICS, EXTRINSICS = "calibration/camera_intrinsics", "calibration/sensor_extrinsics"
SPLITS: Mapping[str, LogSplit] = {"train": "train", "val": "held_out", "test": "held_out"}
MICROSECOND = 1000
"""In nanoseconds; the dataset counts microseconds from the start of the clip."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip of a download."""

    root: Path
    """The folder of `clip_index.parquet`."""
    name: str
    """The clip's UUID."""
    chunk: int
    """The chunk that holds it."""
    split: LogSplit | None
    """The official split; None where the index has none."""

    def archive(self, feature: str) -> Path:
        """Returns the archive that holds the clip's files of a feature such as `camera/NAME`."""
        return self.root / feature / f"{Path(feature).name}.chunk_{self.chunk:04d}.zip"

    def member(self, feature: str, ending: str) -> str:
        """Returns a file's name in the archive, and where it is unpacked."""
        return f"{self.name}.{Path(feature).name}.{ending}"

    def place(self, feature: str, ending: str = "parquet") -> Path | None:
        """Returns the file that holds a part of a feature: the unpacked one, else the archive; None where there is
        neither.
        """
        member = self.member(feature, ending)
        unpacked = self.root / feature / member
        if unpacked.is_file():
            return unpacked
        archive = self.archive(feature)
        return archive if archive.is_file() and member in _members(str(archive)) else None

    def read(self, feature: str, ending: str = "parquet") -> bytes:
        """Returns a part of a feature. Raises `SceneError` where it is missing or damaged."""
        place, member = self.place(feature, ending), self.member(feature, ending)
        if place is None:
            raise SceneError(f"{self.archive(feature)}: has no {member}; {AGAIN}")
        try:
            return place.read_bytes() if place.name == member else _archive(str(place)).read(member)
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise SceneError(f"{place}: {member}: {error}; {AGAIN}") from error

    def columns(self, feature: str, names: Sequence[str], ending: str = "parquet") -> list[npt.NDArray[Any]]:
        """Returns columns of a parquet file of the clip; the others are not read. Raises `SceneError` where one is
        missing or no number.
        """
        source = f"{self.root / feature}: {self.member(feature, ending)}"
        try:
            file = parquet.ParquetFile(pa.BufferReader(self._mapped(feature, ending)))
            there = [name for name in names if name in file.schema_arrow.names]
            return numbers(file.read(columns=there), names, source)
        except (pa.ArrowException, OSError) as error:
            reason = str(error).partition("\n")[0]
            raise SceneError(f"{source}: is damaged ({reason}); {AGAIN}") from error

    def table(self, feature: str) -> pa.Table:
        """Returns a parquet file of the clip. Raises `SceneError` where it is missing or damaged."""
        try:
            return parquet.read_table(io.BytesIO(self.read(feature)))
        except (pa.ArrowException, OSError) as error:
            reason = str(error).partition("\n")[0]
            source = f"{self.root / feature}: {self.member(feature, 'parquet')}"
            raise SceneError(f"{source}: is damaged ({reason}); {AGAIN}") from error

    def _mapped(self, feature: str, ending: str) -> pa.Buffer:
        """Returns a part of a feature without reading it, where its archive did not compress it."""
        place, member = self.place(feature, ending), self.member(feature, ending)
        if place is None or place.name == member:
            return pa.memory_map(str(place)).read_buffer() if place else pa.py_buffer(self.read(feature, ending))
        entry = _archive(str(place)).getinfo(member)
        if entry.compress_type != zipfile.ZIP_STORED:
            return pa.py_buffer(self.read(feature, ending))
        archive = pa.memory_map(str(place)).read_buffer()
        name, extra = struct.unpack("<HH", archive[entry.header_offset + 26 : entry.header_offset + 30])
        return archive.slice(entry.header_offset + 30 + name + extra, entry.file_size)

    def stamps(self, feature: str, column: str = "timestamp", ending: str = "timestamps.parquet") -> Nanoseconds:
        """Returns the times (ns) of a camera's frames, or a LiDAR's turns. Raises `SceneError` where they are no times
        in order.
        """
        (times,) = self.columns(feature, [column], ending)
        if (np.diff(times) <= 0).any():
            raise SceneError(f"{self.root / feature}: {self.name}: {column}: not in the order of time; {AGAIN}")
        return times.astype(np.int64) * MICROSECOND

    def features(self, kind: str) -> list[str]:
        """Returns the features of a folder such as `camera` that the clip has files of."""
        folders = sorted(path for path in (self.root / kind).glob("*") if path.is_dir())
        return [f"{kind}/{path.name}" for path in folders if self.place(f"{kind}/{path.name}") or self._video(path)]

    def _video(self, folder: Path) -> bool:
        return self.place(f"{folder.parent.name}/{folder.name}", "mp4") is not None

    def calibration(self, feature: str) -> dict[str, dict[str, Any]]:
        """Returns the clip's rows of a calibration by sensor. Raises `SceneError` where there is none."""
        path = self.root / feature / f"{Path(feature).name}.chunk_{self.chunk:04d}.parquet"
        rows = _calibration(str(path)).get(self.name)
        if rows is None:
            raise SceneError(f"{path}: has no row of clip {self.name}; {AGAIN}")
        return rows


def read_index(root: Path) -> list[Clip]:
    """Returns all clips of an index. Raises `SceneError` where it is damaged."""
    path = root / INDEX
    table = _table(path)
    names = _index_columns(table)
    if "chunk" not in table.schema.names or not names:
        raise SceneError(f"{path}: column chunk or clip_id: is missing; {AGAIN}")
    splits = table["split"].to_pylist() if "split" in table.schema.names else [None] * len(table)
    clips = [str(name) for name in table[names[0]].to_pylist()]
    if wrong := next((name for name in clips if Path(name).name != name), None):
        raise SceneError(f"{path}: column {names[0]}: {wrong!r} is no clip's name; {AGAIN}")
    rows = zip(clips, table["chunk"].to_pylist(), splits, strict=True)
    return [Clip(root, name, int(chunk), SPLITS.get(str(split))) for name, chunk, split in rows]


@functools.lru_cache(maxsize=2)
def open_index(root: str) -> list[Clip]:
    """Returns `read_index` of a folder, kept for its next frame."""
    return read_index(Path(root))


def numbers(table: pa.Table, names: Sequence[str], source: str) -> list[npt.NDArray[Any]]:
    """Returns columns of numbers. Raises `SceneError`, which names the `source`, where one is missing or no number."""
    if missing := sorted(set(names) - set(table.schema.names)):
        raise SceneError(f"{source}: column {', '.join(missing)}: is missing; {AGAIN}")
    for name in names:
        if not (pa.types.is_integer(kind := table[name].type) or pa.types.is_floating(kind)):
            raise SceneError(f"{source}: column {name}: holds {kind}, not numbers; {AGAIN}")
    return [table[name].to_numpy() for name in names]


def _index_columns(table: pa.Table) -> list[str]:
    """Returns the columns that are pandas' index, which tells clips and sensors."""
    metadata = table.schema.pandas_metadata or {}
    return [name for name in metadata.get("index_columns", ()) if isinstance(name, str)]


def _table(path: Path) -> pa.Table:
    with reads(path, AGAIN):
        return parquet.read_table(path)


@functools.lru_cache(maxsize=8)
def _calibration(path: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns the rows of a chunk's calibration by clip and sensor."""
    table = _table(Path(path))
    keys = _index_columns(table)
    if len(keys) < 2:
        raise SceneError(f"{path}: has no index of clips and sensors; {AGAIN}")
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for row in table.to_pylist():
        rows.setdefault(str(row[keys[0]]), {})[str(row[keys[1]])] = row
    return rows


@functools.lru_cache(maxsize=32)
def _archive(path: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


@functools.lru_cache(maxsize=32)
def _members(path: str) -> frozenset[str]:
    """Returns the names in an archive; none of a damaged one, whose files are then told to be missing."""
    try:
        return frozenset(_archive(path).namelist())
    except (OSError, zipfile.BadZipFile):
        return frozenset()
