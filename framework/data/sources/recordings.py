"""Shards of recordings, written when a recipe first asks for them."""

from __future__ import annotations

import functools
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from framework.data.shards.record import SCHEMA_VERSION
from framework.data.shards.statistics import Survey, read_statistics, survey_of
from framework.data.shards.writer import Summary, Work, write_once, write_shards
from framework.data.sources.base import UNREADABLE, RecordedDataset, RecordedLog, Split
from framework.data.sources.once import once_per_node
from framework.data.sources.version import code_version
from framework.data.stream.mixture import Location
from framework.recipe.component import component
from framework.recipe.paths import RecordingsPath
from framework.recipe.ranges import PerNode
from framework.scene.types import Scene, SceneError

Item = tuple[str, str, int]
"""A dataset's name and one of its frames."""
LOOKS = 16
"""Folders that are looked at at once: on a shared file system each file takes a part of a millisecond."""


@dataclass(frozen=True)
class Recordings:
    """The logs of some datasets below a folder, those of one split."""

    datasets: Mapping[str, RecordedDataset]
    """The datasets by name."""
    logs: Mapping[str, Sequence[RecordedLog]]
    """The logs of each dataset that are in the split."""

    @property
    def items(self) -> list[Item]:
        """Every frame."""
        return [(name, *frame) for name, logs in self.logs.items() for log in logs for frame in log.frames]

    @property
    def left_out(self) -> dict[str, int]:
        """Frames that become no item, by dataset and reason."""
        counts: Counter[str] = Counter()
        for name, logs in self.logs.items():
            for log in logs:
                counts.update({f"{name} {what}": count for what, count in log.left_out.items()})
        return dict(counts)

    @property
    def files(self) -> list[str]:
        """The files that the frames are read from, each once."""
        logs = [log for logs in self.logs.values() for log in logs]
        return sorted({path for log in logs for path in (*log.files, *(path for path, _ in log.frames))})

    def __str__(self) -> str:
        """Returns a line for each dataset that has logs: their number by split, and what no scene has."""
        lines = []
        for name, logs in self.logs.items():
            if not logs:
                continue
            splits = Counter(f"{log.split} ({'by hash' if log.official is None else 'official'})" for log in logs)
            counts = ", ".join(f"{count} {split}" for split, count in sorted(splits.items()))
            missing = "; ".join(f"no {field} ({reason})" for field, reason in self.datasets[name].lacks.items())
            lines.append(f"{name}: logs: {counts}; frames: {sum(len(log.frames) for log in logs)}; {missing}")
        return "\n".join(lines)

    def scenes(self, item: Item) -> Iterator[Scene]:
        """Yields the scene of a frame. Raises `SceneError` for a recording that is not laid out as its dataset is."""
        return read_item(self.datasets, item)

    def work(self) -> Work[Item]:
        """Returns the scenes to write as shards."""
        scenes = functools.partial(read_item, self.datasets)
        groups = [(log.split, len(log.frames)) for logs in self.logs.values() for log in logs if log.frames]
        return Work(self.items, scenes, self.left_out, groups)

    def write(self, folder: Path, workers: int = 1, quiet: bool = False) -> Summary:
        """Writes the scenes as shards in `folder`."""
        return write_shards(self.work(), folder, workers, quiet=quiet)

    def identity(self, root: Path) -> dict[str, str]:
        """Returns what decides which scenes the frames become, by name: the files below `root`, and the readers."""
        return {"files": _digest(files_changed(self.files, root)), **self.readers()}

    def readers(self) -> dict[str, str]:
        """Returns the class, the arguments and the code of each dataset, by name."""
        facts: dict[str, str] = {}
        for name, dataset in self.datasets.items():
            kind = type(dataset)
            facts |= {f"datasets.{name}": kind.__qualname__, f"datasets.{name} (its code)": code_version(kind)}
            facts |= {f"datasets.{name}.{key}": repr(value) for key, value in sorted(vars(dataset).items())}
        return facts


def find_recordings(folder: Path, datasets: Mapping[str, RecordedDataset], split: Split = "all") -> Recordings:
    """Returns the recordings of `datasets` below `folder` that are in `split`. Raises `SceneError` where there is no
    frame, with what there is instead.
    """
    return recordings_of(folder, datasets, find_logs(folder, datasets), split)


def find_logs(folder: Path, datasets: Mapping[str, RecordedDataset]) -> dict[str, list[RecordedLog]]:
    """Returns the logs of each dataset below `folder`."""
    return {name: list(dataset.find_logs(str(folder))) for name, dataset in datasets.items()}


def recordings_of(
    folder: Path, datasets: Mapping[str, RecordedDataset], every: Mapping[str, Sequence[RecordedLog]], split: Split
) -> Recordings:
    """Returns those of the logs `every` that are in `split`; see `find_recordings`."""
    chosen = {  # what a log without frames says concerns every split
        name: [log for log in logs if split in ("all", log.split) or not log.frames] for name, logs in every.items()
    }
    found = Recordings(datasets, chosen)
    if found.items:
        return found
    names = ", ".join(datasets)
    if not folder.is_dir():
        raise SceneError(f"{folder}: is no folder; give the folder above the recordings, or other datasets")
    if not any(log.frames for logs in every.values() for log in logs):
        reasons = "; ".join(f"{what}: {count}" for what, count in Recordings(datasets, every).left_out.items())
        what = f"holds no recording of {names}" + (f" that becomes a scene ({reasons})" if reasons else "")
        raise SceneError(f"{folder}: {what}; give the folder above the recordings, or other datasets")
    there = ", ".join(f"{name} {len(logs)}" for name, logs in every.items() if logs)
    raise SceneError(
        f"{folder}: split: no log is in {split!r} ({there}, all in the other one); lay more logs there, or use "
        "split: all and judge nothing by scenes that were trained"
    )


def read_item(datasets: Mapping[str, RecordedDataset], item: Item) -> Iterator[Scene]:
    """See `Recordings.scenes`; it pickles."""
    name, path, place = item
    try:
        yield datasets[name].read_scene((path, place))
    except (SceneError, OSError):
        raise
    except UNREADABLE as error:
        raise SceneError(f"{path} at {place}: {error!r}: not laid out as {name} is; fetch it again") from error


@component
class RecordingShards:
    """A stream of recordings, whose shards are written on first use.

    The folder of the shards is named by a hash of the recordings, of the datasets' arguments and of the code that reads
    them, so that a change of any writes new shards.

    Args:
        recordings: Folder below which recordings are searched.
        cache: Folder in which the shards' folder is created.
        datasets: The datasets to include, by names of one's choice; None leaves one out that another recipe includes.
        split: Logs to include. "train" and "held_out" have none in common: they are the official splits where the
            layout tells them (validation and test are held out), else a tenth of the logs, by a hash of their names, is
            held out.
        workers: Processes that write; None takes as many as there are cores, at most 4.

    Raises:
        ValueError: `datasets` is empty.
    """

    lacks: ClassVar[Mapping[str, str]] = {"dialogue": "recordings hold no conversations"}

    def __init__(
        self,
        recordings: RecordingsPath,
        cache: str,
        datasets: Mapping[str, RecordedDataset | None],
        split: Split = "all",
        workers: PerNode | None = None,
    ) -> None:
        if not datasets:
            raise ValueError("datasets: empty; name at least one")
        self.recordings = Path(recordings)
        self.cache = Path(cache)
        self.datasets = {name: dataset for name, dataset in datasets.items() if dataset is not None}
        self.split: Split = split
        self.workers = workers or min(4, os.cpu_count() or 1)

    @functools.cached_property
    def found(self) -> Recordings:
        """The recordings of the stream. Raises `SceneError` when there is no frame."""
        facts = (str(self.recordings.absolute()), self._readers(self.datasets))
        logs = once_per_node(self.cache, facts, lambda: _as_json(find_logs(self.recordings, self.datasets)))
        return recordings_of(self.recordings, self.datasets, _from_json(logs), self.split)

    @functools.cached_property
    def folder(self) -> Path:
        """The folder of the shards, whether or not they are written. One rank of a node searches and looks at the
        files.
        """
        facts = (str(self.recordings.absolute()), self.split, self._readers(self.datasets))
        return self.cache / once_per_node(self.cache, facts, self._name)

    def _name(self) -> str:
        files = files_changed(self.found.files, self.recordings)
        places = [(name, place) for name, _, place in self.found.items]
        facts = (files, places, SCHEMA_VERSION, self._readers(name for name in self.datasets if self.found.logs[name]))
        return f"recordings-{_digest(facts)}"

    def _readers(self, names: Iterable[str]) -> list[tuple[str, str, str, str]]:
        return [_reader(name, self.datasets[name]) for name in names]

    def location(self) -> Location:
        """Returns where the shards are; writes them first if they are missing, in one of the processes that ask."""
        write_once(self.folder, lambda: self.found.write(self.folder, self.workers))
        return Location(str(self.folder), self.folder)

    def survey(self, count: int) -> Survey:
        """See `Source`: from the index where the shards are written, else about `count` frames from all over each
        dataset, with the sizes that its files declare. Frames that can't be read are passed over.

        Raises `SceneError` where none can be.
        """
        statistics = read_statistics(self.folder / "index.json")
        if statistics is not None:
            return statistics.survey()
        outlines: list[tuple[float, Scene]] = []
        items = self.found.items
        problem = ""
        for name in self.datasets:
            frames = [item for item in items if item[0] == name]
            step = -(-len(frames) // count) or 1
            scenes: list[Scene] = []
            for item in (item for start in range(step) for item in frames[start::step]):
                try:
                    scenes += self.found.scenes(item)
                except (SceneError, OSError) as error:
                    problem = str(error)
                if len(scenes) >= len(frames[::step]):
                    break
            if scenes:
                outlines += survey_of(scenes, len(frames)).outlines
        if not outlines:
            raise SceneError(f"{self.recordings}: none of the {len(items)} frames can be read; {problem}")
        return Survey(len(items), outlines)


def files_changed(files: Iterable[str], root: Path) -> list[tuple[str, str]]:
    """Returns of each file its path from `root`, and what changes with it: its size and time, those of all files in it
    where it is a folder. A file that is written again in place does not change the folder itself.
    """
    paths = list(files)
    with ThreadPoolExecutor(LOOKS) as pool:
        states = list(pool.map(_state, paths))
    return [(os.path.relpath(path, root), state) for path, state in zip(paths, states, strict=True)]


def _state(path: str) -> str:
    if not Path(path).is_dir():
        return _stamp(Path(path).stat())
    with os.scandir(path) as entries:
        held = sorted((entry.name, _stamp(entry.stat()) if entry.is_file() else "") for entry in entries)
    return f"{len(held)} {_digest(held)}"


def _stamp(stat: os.stat_result) -> str:
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _as_json(logs: Mapping[str, Sequence[RecordedLog]]) -> dict[str, list[dict[str, Any]]]:
    return {name: [asdict(log) for log in of] for name, of in logs.items()}


def _from_json(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[RecordedLog]]:
    return {name: [_log(**facts) for facts in of] for name, of in logs.items()}


def _log(frames: Iterable[Sequence[Any]], files: Iterable[str], **facts: Any) -> RecordedLog:
    return RecordedLog(frames=tuple((path, place) for path, place in frames), files=tuple(files), **facts)


def _digest(facts: object) -> str:
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


def _reader(name: str, dataset: RecordedDataset) -> tuple[str, str, str, str]:
    """Returns what decides which scenes a dataset's files become: its class, arguments and code."""
    kind = type(dataset)
    return name, kind.__qualname__, repr(sorted(vars(dataset).items())), code_version(kind)
