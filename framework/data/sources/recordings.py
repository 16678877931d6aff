"""Shards of recordings, converted when a recipe first asks for them."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from framework.data.shards.record import SCHEMA_VERSION
from framework.data.shards.writer import Summary, Work, write_once, write_shards
from framework.data.sources import argoverse, forecasting, kitti, nuscenes
from framework.data.stream.mixture import Location
from framework.recipe.paths import InputPath
from framework.scene.types import Scene, SceneError


class Family(Protocol):
    """A kind of recordings: where its moments are, and what each becomes."""

    def find(self, folder: Path) -> list[tuple[str, int]]:
        """The moments below `folder`: a file and a place in it, those of one file together."""
        ...

    def convert(self, item: tuple[str, int]) -> Scene:
        """The scene of one moment."""
        ...


FAMILIES: dict[str, Family] = {
    "argoverse": argoverse,
    "forecasting": forecasting,
    "nuscenes": nuscenes,
    "kitti": kitti,
}

Item = tuple[str, str, int]
"""A family's name and one of its moments."""


def find_recordings(folder: Path, families: Sequence[str] | None = None) -> list[Item]:
    """Every moment of `families` (None: of all) below `folder`. Raises `SceneError` when there is none."""
    names = list(FAMILIES) if families is None else list(families)
    items = [(name, path, place) for name in names for path, place in FAMILIES[name].find(folder)]
    if not items:
        what = "is no folder" if not folder.is_dir() else f"holds no recording of {', '.join(names)}"
        raise SceneError(f"{folder}: {what}; give the folder above the recordings, or other families")
    return items


def write_recordings(folder: Path, items: Sequence[Item], workers: int = 1, quiet: bool = False) -> Summary:
    """Convert `items` into shards in `folder`."""
    return write_shards(Work(items, _scenes), folder, workers, quiet=quiet)


def _scenes(item: Item) -> Iterator[Scene]:
    """The scene of a moment. Raises `SceneError` for a recording that is not as its family's are."""
    family, path, place = item
    try:
        yield FAMILIES[family].convert((path, place))
    except SceneError:
        raise
    except (KeyError, IndexError, ValueError) as error:
        raise SceneError(f"{path} at {place}: {error!r}: not laid out as {family} is; fetch it again") from error


class RecordingShards:
    """A stream of the recordings below `recordings`, of `families` (None: of all that are known), kept under `cache`.

    The folder's name is a hash of what it holds, so that other recordings or another conversion never meet old shards.
    """

    def __init__(
        self, recordings: InputPath, cache: str, families: Sequence[str] | None = None, workers: int | None = None
    ) -> None:
        unknown = sorted(set(families or ()) - set(FAMILIES))
        if unknown or families == []:
            raise ValueError(f"families: {unknown or 'empty'}; give some of {sorted(FAMILIES)}, or null for all")
        self.recordings = Path(recordings)
        self.cache = Path(cache)
        self.families = None if families is None else tuple(families)
        self.workers = workers or min(4, os.cpu_count() or 1)

    @functools.cached_property
    def items(self) -> list[Item]:
        """The moments found. Raises `SceneError` when there is none."""
        return find_recordings(self.recordings, self.families)

    @functools.cached_property
    def folder(self) -> Path:
        """Where the shards are or will be."""
        files = {path: Path(path).stat() for path in sorted({path for _, path, _ in self.items})}
        sizes = [
            (os.path.relpath(path, self.recordings), stat.st_size, stat.st_mtime_ns) for path, stat in files.items()
        ]
        places = [(family, place) for family, _, place in self.items]
        facts = (sizes, places, SCHEMA_VERSION, _conversion_version())
        return self.cache / f"recordings-{hashlib.sha256(repr(facts).encode()).hexdigest()[:12]}"

    def location(self) -> Location:
        """Their folder; they are written first where they are absent, by one process of however many ask."""
        write_once(self.folder, lambda: write_recordings(self.folder, self.items, self.workers))
        return Location(str(self.folder), self.folder)

    def sample_scenes(self, count: int) -> list[Scene]:
        """Up to `count` scenes from all over the recordings, converted without writing a shard."""
        chosen = self.items[:: max(1, len(self.items) // count)][:count]
        return [scene for item in chosen for scene in _scenes(item)]


CONVERSION = ("annotate", "argoverse", "forecasting", "info", "kitti", "nuscenes", "tracks")
"""The modules that decide what a recording becomes."""


@functools.cache
def _conversion_version() -> str:
    """A hash of the converters' own source, so that a changed conversion is not read from old shards."""
    sources = [Path(__file__).with_name(f"{name}.py") for name in CONVERSION]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
