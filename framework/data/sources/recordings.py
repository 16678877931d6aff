"""Shards of recordings, written when a recipe first asks for them."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from framework.data.shards.record import SCHEMA_VERSION
from framework.data.shards.statistics import Survey, read_statistics, survey_of
from framework.data.shards.writer import Summary, Work, write_once, write_shards
from framework.data.sources import argoverse, forecasting, kitti, nuscenes
from framework.data.sources.base import RecordedDataset
from framework.data.stream.mixture import Location
from framework.recipe.component import component
from framework.recipe.paths import RecordingsPath
from framework.recipe.ranges import PerNode
from framework.scene.types import Scene, SceneError

DATASETS: dict[str, RecordedDataset] = {
    "argoverse": argoverse,
    "forecasting": forecasting,
    "nuscenes": nuscenes,
    "kitti": kitti,
}

Item = tuple[str, str, int]
"""A dataset's name and one of its frames."""


def find_recordings(folder: Path, datasets: Sequence[str] | None = None) -> list[Item]:
    """Returns every frame of `datasets` (None: of all) below `folder`. Raises `SceneError` when there is none."""
    names = list(DATASETS) if datasets is None else list(datasets)
    items = [(name, path, place) for name in names for path, place in DATASETS[name].find_frames(folder)]
    if not items:
        what = "is no folder" if not folder.is_dir() else f"holds no recording of {', '.join(names)}"
        raise SceneError(f"{folder}: {what}; give the folder above the recordings, or other datasets")
    return items


def left_out(folder: Path, datasets: Sequence[str] | None = None) -> dict[str, int]:
    """Returns the frames of `datasets` (None: of all) below `folder` that `find_recordings` passes over, by reason."""
    names = list(DATASETS) if datasets is None else list(datasets)
    return {f"{name} {what}": count for name in names for what, count in DATASETS[name].left_out(folder).items()}


def write_recordings(
    folder: Path,
    items: Sequence[Item],
    workers: int = 1,
    quiet: bool = False,
    dropped: Mapping[str, int] | None = None,
) -> Summary:
    """Writes the scenes of `items` as shards in `folder`; `dropped` counts the frames that became no item."""
    return write_shards(Work(items, _scenes, dropped or {}), folder, workers, quiet=quiet)


def _scenes(item: Item) -> Iterator[Scene]:
    """Yields the scene of a frame. Raises `SceneError` for a recording that is not laid out as its dataset is."""
    dataset, path, place = item
    try:
        yield DATASETS[dataset].read_scene((path, place))
    except SceneError:
        raise
    except (KeyError, IndexError, ValueError) as error:
        raise SceneError(f"{path} at {place}: {error!r}: not laid out as {dataset} is; fetch it again") from error


@component
class RecordingShards:
    """A stream of recordings, whose shards are written on first use.

    The folder of the shards is named by a hash of the recordings and of the code that reads them, so that a change of
    either writes new shards.

    Args:
        recordings: Folder below which recordings are searched.
        cache: Folder in which the shards' folder is created.
        datasets: Names of `DATASETS` to include; None includes all.
        workers: Processes that write; None takes as many as there are cores, at most 4.

    Raises:
        ValueError: `datasets` is empty or names an unknown dataset.
    """

    def __init__(
        self,
        recordings: RecordingsPath,
        cache: str,
        datasets: Sequence[str] | None = None,
        workers: PerNode | None = None,
    ) -> None:
        unknown = sorted(set(datasets or ()) - set(DATASETS))
        if unknown or datasets == []:
            raise ValueError(f"datasets: {unknown or 'empty'}; give some of {sorted(DATASETS)}, or null for all")
        self.recordings = Path(recordings)
        self.cache = Path(cache)
        self.datasets = None if datasets is None else tuple(datasets)
        self.workers = workers or min(4, os.cpu_count() or 1)

    @functools.cached_property
    def items(self) -> list[Item]:
        """The frames of the stream. Raises `SceneError` when there is none."""
        return find_recordings(self.recordings, self.datasets)

    @functools.cached_property
    def folder(self) -> Path:
        """The folder of the shards, whether or not they are written."""
        files = {path: Path(path).stat() for path in sorted({path for _, path, _ in self.items})}
        sizes = [
            (os.path.relpath(path, self.recordings), stat.st_size, stat.st_mtime_ns) for path, stat in files.items()
        ]
        places = [(dataset, place) for dataset, _, place in self.items]
        facts = (sizes, places, SCHEMA_VERSION, _reader_version())
        return self.cache / f"recordings-{hashlib.sha256(repr(facts).encode()).hexdigest()[:12]}"

    def location(self) -> Location:
        """Returns where the shards are; writes them first if they are missing, in one of the processes that ask."""
        write_once(self.folder, self._write)
        return Location(str(self.folder), self.folder)

    def _write(self) -> Summary:
        dropped = left_out(self.recordings, self.datasets)
        return write_recordings(self.folder, self.items, self.workers, dropped=dropped)

    def survey(self, count: int) -> Survey:
        """See `Source`: from the index where the shards are written, else `count` frames from all over each dataset,
        with the sizes that its files declare.
        """
        statistics = read_statistics(self.folder / "index.json")
        if statistics is not None:
            return statistics.survey()
        outlines: list[tuple[float, Scene]] = []
        for dataset in dict.fromkeys(name for name, _, _ in self.items):
            frames = [item for item in self.items if item[0] == dataset]
            chosen = frames[:: -(-len(frames) // count)]
            found = survey_of((scene for item in chosen for scene in _scenes(item)), len(frames))
            outlines += found.outlines
        return Survey(len(self.items), outlines)


READERS = ("annotate", "argoverse", "forecasting", "info", "kitti", "nuscenes", "tracks")
"""The modules that decide what a recording becomes."""


@functools.cache
def _reader_version() -> str:
    """Returns a hash of the readers' source, so that changed code does not read old shards."""
    sources = [Path(__file__).with_name(f"{name}.py") for name in READERS]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
