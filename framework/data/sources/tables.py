"""Rows of binary tables: parquet, Arrow (a Hugging Face dataset on disk), WebDataset tars and MDS shards."""

from __future__ import annotations

import bisect
import io
import json
import tarfile
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
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
    images and videos, in the order of their names, are the row's unless that lists media itself.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.members: dict[str, dict[str, tuple[int, int]]] = {}
        try:
            with tarfile.open(path) as file:
                for member in file:
                    folder, _, name = member.name.rpartition("/")
                    stem, _, ending = name.partition(".")
                    if member.isfile() and ending:
                        places = self.members.setdefault(f"{folder}/{stem}".lstrip("/"), {})
                        places[f".{ending.lower()}"] = (member.offset_data, member.size)
        except tarfile.TarError as error:
            reason = "; ".join(str(error).split("\n"))
            raise SceneError(f"{path}: {reason}; fetch or write the file again") from error
        self.names = list(self.members)

    def __len__(self) -> int:
        return len(self.names)

    def row(self, index: int) -> Any:
        """See `Rows`."""
        members = self.members[self.names[index]]
        if ".json" not in members:
            raise SceneError(f"has no .json, but {', '.join(members)}; write the turns next to the media")
        row = json.loads(self._read(*members[".json"]))
        if isinstance(row, dict):
            row.setdefault("id", self.names[index])
            for column, endings in MEDIA_OF_TARS.items():
                if not row.get(column) and not row.get(column.removesuffix("s")):
                    row[column] = [self._read(*members[name]) for name in sorted(members) if name.endswith(endings)]
        return row

    def place(self, index: int) -> str:
        """See `Rows`."""
        return f"[{self.names[index]}]"

    def _read(self, offset: int, size: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(size)


class Mds:
    """A folder of MDS shards with columns of anybody's, by its index.json."""

    def __init__(self, path: Path) -> None:
        from framework.data.shards.cache import CachePolicy, ShardCache
        from framework.data.shards.reader import ShardReader

        self.reader = ShardReader(ShardCache(str(path.parent), path.parent, CachePolicy(), session=""))
        self.ends = np.cumsum(self.reader.cache.index.samples).tolist()

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def row(self, index: int) -> Any:
        """See `Rows`."""
        shard = bisect.bisect_right(self.ends, index)
        record = self.reader.record(shard, index - (self.ends[shard - 1] if shard else 0))
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
