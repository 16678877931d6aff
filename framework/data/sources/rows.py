"""The rows of annotation files: JSON, JSON lines and parquet."""

from __future__ import annotations

import bisect
import functools
import json
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from framework.scene.types import SceneError

SUFFIXES = (".json", ".jsonl", ".parquet")


class Rows(Protocol):
    """The rows of a file."""

    def __init__(self, path: Path) -> None: ...

    def __len__(self) -> int: ...

    def row(self, index: int) -> Any:
        """Returns a row as JSON has it. Raises `SceneError` for one that cannot be read."""
        ...

    def place(self, index: int) -> str:
        """Returns where a row is in the file: its line, or its number from 0."""
        ...


def find_files(place: Path) -> list[Path]:
    """Returns the annotation files below a folder, or the file itself, in the order of their names.

    Raises `SceneError` where there is none.
    """
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.suffix in SUFFIXES)
    files = [path for path in files if path.suffix in SUFFIXES and path.is_file()]
    if not files:
        what = "is no folder" if not place.exists() else f"holds no file of {', '.join(SUFFIXES)}"
        raise SceneError(f"{place}: {what}; give a file of conversations, or the folder that holds them")
    return files


def open_rows(path: Path) -> Rows:
    """Returns the rows of a file. A process keeps those of the files that it read last, until they change.

    Raises `SceneError` for a file that is damaged or holds no list of rows.
    """
    return _opened(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _opened(path: Path, _changed: int) -> Rows:
    readers: dict[str, type[Rows]] = {".json": _Json, ".jsonl": _JsonLines, ".parquet": _Parquet}
    return readers[path.suffix](path)


class _Json:
    """A file with a list of rows, all of it in memory."""

    def __init__(self, path: Path) -> None:
        try:
            rows = json.loads(path.read_bytes())
        except ValueError as error:
            raise SceneError(f"{path}: {error}; write it as JSON again, or name it .jsonl if it has lines") from error
        if not isinstance(rows, list):
            raise SceneError(f"{path}: is a {type(rows).__name__}, not a list of conversations; put them in a list")
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> Any:
        return self.rows[index]

    def place(self, index: int) -> str:
        return f"[{index}]"


class _JsonLines:
    """A file with a row a line, of which only the places of the lines are in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            lengths = [(len(line), bool(line.strip())) for line in file]
        ends = np.cumsum([length for length, _ in lengths], dtype=np.int64)
        self.starts = np.concatenate([[0], ends])[:-1][[full for _, full in lengths]] if lengths else ends
        self.numbers = np.flatnonzero([full for _, full in lengths]) + 1

    def __len__(self) -> int:
        return len(self.starts)

    def row(self, index: int) -> Any:
        with self.path.open("rb") as file:
            file.seek(int(self.starts[index]))
            line = file.readline()
        try:
            return json.loads(line)
        except ValueError as error:
            raise SceneError(f"{error}; write the line as JSON again") from error

    def place(self, index: int) -> str:
        return f":{self.numbers[index]}"


class _Parquet:
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
        group = bisect.bisect_right(self.ends, index)
        if group != self.group:
            table = self.file.read_row_group(group)
            kinds = {field.name: field.type for field in table.schema}
            self.group = group
            self.rows = [{name: _plain(row[name], kinds[name]) for name in row} for row in table.to_pylist()]
        return self.rows[index - self.ends[group]]

    def place(self, index: int) -> str:
        return f"[{index}]"


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
