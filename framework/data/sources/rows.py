"""The rows of annotation files and datasets: JSON, JSON lines, and the tables of `framework.data.sources.tables`."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from framework.data.sources.base import files_below
from framework.data.sources.tables import Arrow, Mds, Parquet, Tar
from framework.scene.types import SceneError

SUFFIXES = (".json", ".jsonl", ".parquet", ".arrow", ".tar")
LOOKED_AT = 32
"""Rows of each file in which columns are searched."""
DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files that Hugging Face writes next to a dataset's."""


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
    """Returns the annotation files below a folder, or the file itself, in the order of their names. MDS shards are
    their index.json, with what lies next to it.

    Raises `SceneError` where there is none.
    """
    files = [place] if place.is_file() else _of_datasets(files_below(place))
    files = [path for path in files if path.suffix.lower() in SUFFIXES and path.name not in DESCRIPTIONS]
    files = [path for path in files if path.is_file()]  # no link that leads nowhere
    shards = {path.parent for path in files if path.name == "index.json" and _is_mds(path)}
    files = [path for path in files if path.name == "index.json" or not shards & {path.parent, *path.parents}]
    if not files:
        what = "is no folder" if not place.exists() else f"holds no file of {', '.join(SUFFIXES)}"
        raise SceneError(f"{place}: {what}; give a file of conversations, or the folder that holds them")
    return files


def _of_datasets(files: list[Path]) -> list[Path]:
    """Returns `files` without the Arrow files that a Hugging Face dataset on disk does not hold by its state.json:
    what its `map` and `filter` have kept.
    """
    held = {path.parent: names for path in files if path.name == "state.json" and (names := _data_files(path))}
    return [
        path
        for path in files
        if path.suffix.lower() != ".arrow" or path.parent not in held or path.name in held[path.parent]
    ]


def _data_files(state: Path) -> set[str]:
    try:
        return {str(file["filename"]) for file in json.loads(state.read_bytes())["_data_files"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()


def open_rows(path: Path) -> Rows:
    """Returns the rows of a file. A process keeps those of the files that it read last, until they change.

    Raises `SceneError` for a file that is damaged or holds no list of rows.
    """
    try:
        return _opened(path, path.stat().st_mtime_ns)
    except SceneError:
        raise
    except (ValueError, RecursionError) as error:
        raise SceneError(f"{path}: {error}; fetch or write the file again") from error


@functools.lru_cache(maxsize=4)
def _opened(path: Path, _changed: int) -> Rows:
    readers: dict[str, type[Rows]] = {".jsonl": _JsonLines, ".parquet": Parquet, ".arrow": Arrow, ".tar": Tar}
    suffix = path.suffix.lower()
    if suffix == ".json":
        return Mds(path) if path.name == "index.json" and _is_mds(path) else _json(path)
    return readers[suffix](path)


def _is_mds(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(200)
    return start.lstrip().startswith(b"{") and b'"shards"' in start


def _json(path: Path) -> Rows:
    """Returns the rows of a file of a list, or of lines, which some name .json as well."""
    with path.open("rb") as file:
        first = file.readline()
    try:
        return _JsonLines(path) if isinstance(json.loads(first), dict) else _Json(path)
    except (ValueError, RecursionError):
        return _Json(path)


class _Json:
    """A file with a list of rows, all of it in memory."""

    def __init__(self, path: Path) -> None:
        try:
            rows = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
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
        except (ValueError, RecursionError) as error:
            raise SceneError(f"{error}; write the line as JSON again") from error

    def place(self, index: int) -> str:
        return f":{self.numbers[index]}"
