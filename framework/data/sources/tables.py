"""Rows of binary tables: parquet, Arrow (a Hugging Face dataset on disk), WebDataset tars and MDS shards."""

from __future__ import annotations

import bisect
import io
import json
import re
import tarfile
from itertools import accumulate
from pathlib import Path
from typing import Any

from PIL import Image

from framework.scene.types import SceneError

MEDIA_OF_TARS = {
    "images": (".jpg", ".jpeg", ".png", ".webp"),
    "videos": (".mp4", ".webm", ".mov", ".mkv"),
}
"""Endings of a tar's members that are images and videos of a row."""


class Parquet:
    """A parquet file, of which one row group is in memory."""

    def __init__(self, path: Path) -> None:
        import pyarrow
        from pyarrow.parquet import ParquetFile

        try:
            self.file = ParquetFile(path)
        except pyarrow.ArrowException as error:
            raise SceneError(f"{path}: {error}; fetch or write the file again") from error
        groups = range(self.file.metadata.num_row_groups)
        self.ends = list(accumulate(self.file.metadata.row_group(group).num_rows for group in groups))
        self.group, self.rows = -1, list[Any]()

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def row(self, index: int) -> Any:
        """See `Rows`."""
        group = bisect.bisect_right(self.ends, index)
        if group != self.group:
            self.group, self.rows = group, _rows_of(self.file.read_row_group(group))
        return self.rows[index - self.ends[group]]

    def place(self, index: int) -> str:
        """See `Rows`."""
        return f"[{index}]"


class Arrow:
    """A file of a Hugging Face dataset on disk (`save_to_disk`), mapped into memory."""

    def __init__(self, path: Path) -> None:
        import pyarrow
        from pyarrow import ipc

        try:
            mapped = pyarrow.memory_map(str(path))
            try:
                self.table = ipc.open_stream(mapped).read_all()
            except pyarrow.ArrowInvalid:
                self.table = ipc.open_file(mapped).read_all()
        except pyarrow.ArrowException as error:
            raise SceneError(f"{path}: {error}; fetch or write the file again") from error

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def row(self, index: int) -> Any:
        """See `Rows`."""
        return _rows_of(self.table.slice(index, 1))[0]

    def place(self, index: int) -> str:
        """See `Rows`."""
        return f"[{index}]"


class Tar:
    """A WebDataset tar: the members whose names are equal up to the first dot are a row. Its JSON is the row, its
    images and videos, in the order of their names (2 comes before 10), are the row's unless that lists media itself.
    One that is cut short has the rows before the cut, and a last one that cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.members: dict[str, dict[str, tuple[int, int]]] = {}
        self.fault: str | None = None
        size = path.stat().st_size
        try:
            with tarfile.open(path, "r:") as file:
                for member in file:
                    if member.offset_data + member.size > size:
                        self.fault = f"is cut short in {member.name}"
                        break
                    self._add(member)
                else:
                    self.fault = _fault_at(path, file.offset)
        except tarfile.TarError as error:
            self.fault = "; ".join(str(error).split("\n"))
        if self.fault is not None:
            self.fault += "; fetch or write the file again"
            if not self.members:
                raise SceneError(f"{path}: {self.fault}")
        self.names = list(self.members)

    def _add(self, member: tarfile.TarInfo) -> None:
        folder, _, name = member.name.rpartition("/")
        stem, _, ending = name.partition(".")
        if member.isfile() and ending:
            places = self.members.setdefault(f"{folder}/{stem}".lstrip("/"), {})
            places[f".{ending.lower()}"] = (member.offset_data, member.size)

    def __len__(self) -> int:
        return len(self.names) + (self.fault is not None)

    def row(self, index: int) -> Any:
        """See `Rows`."""
        if index == len(self.names):
            raise SceneError(f"{self.fault}; the {index} rows before are read")
        members = self.members[self.names[index]]
        if ".json" not in members:
            raise SceneError(f"has no .json, but {', '.join(members)}; write the turns next to the media")
        row = json.loads(self._read(*members[".json"]))
        if isinstance(row, dict):
            row.setdefault("id", self.names[index])
            names = sorted(members, key=_natural)
            for column, endings in MEDIA_OF_TARS.items():
                if not row.get(column) and not row.get(column.removesuffix("s")):
                    row[column] = [self._read(*members[name]) for name in names if name.endswith(endings)]
        return row

    def place(self, index: int) -> str:
        """See `Rows`."""
        return f"[{self.names[index]}]" if index < len(self.names) else ""

    def _read(self, offset: int, size: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(size)


def _fault_at(path: Path, end: int) -> str | None:
    """Returns what is wrong with a tar after its last member: `tarfile` ends without a word at a broken header. A whole
    tar has blocks of zeros there.
    """
    with path.open("rb") as file:
        file.seek(end)
        block = file.read(tarfile.BLOCKSIZE)
    return None if block == bytes(tarfile.BLOCKSIZE) else f"is cut short or damaged at byte {end}"


def _natural(name: str) -> list[tuple[int, str]]:
    """Returns a key that sorts numbers in names by their value."""
    return [(int(piece), "") if piece.isdecimal() else (0, piece) for piece in re.split(r"(\d+)", name)]


class Mds:
    """A folder of MDS shards with columns of anybody's, by its index.json."""

    def __init__(self, path: Path) -> None:
        from framework.data.shards.reader import open_reader

        self.reader = open_reader(str(path.parent), path.parent)

    def __len__(self) -> int:
        return int(self.reader.cache.index.samples.sum())

    def row(self, index: int) -> Any:
        """See `Rows`."""
        record = self.reader.record(*self.reader.cache.index.locate(index))
        return {name: _bytes_of(value) if isinstance(value, Image.Image) else value for name, value in record.items()}

    def place(self, index: int) -> str:
        """See `Rows`."""
        return f"[{index}]"


def _bytes_of(image: Image.Image) -> bytes:
    written = io.BytesIO()
    image.save(written, format="PNG")
    return written.getvalue()


def _rows_of(table: Any) -> list[dict[str, Any]]:
    kinds = {field.name: field.type for field in table.schema}
    return [{name: _plain(row[name], kinds[name]) for name in row} for row in table.to_pylist()]


def _plain(value: Any, kind: Any) -> Any:
    """Returns an Arrow value of type `kind` as JSON has it. A column of unlike values, of texts and lists say, holds
    JSON (the type `arrow.json`).
    """
    from pyarrow import types

    if value is None:
        return None
    if getattr(kind, "extension_name", "") == "arrow.json":
        return json.loads(value)
    if types.is_struct(kind):
        return {field.name: _plain(value[field.name], field.type) for field in kind}
    if types.is_list(kind) or types.is_large_list(kind):
        return [_plain(each, kind.value_type) for each in value]
    return value
