"""The protocol of a recorded dataset: which logs a folder holds, their splits, and the scene of each frame."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

from framework.scene.types import Scene, SceneError

Frame = tuple[str, int]
"""A file and a place in it: an index, a step or a timestamp, as the dataset counts."""
LogSplit = Literal["train", "held_out"]
Split = Literal["train", "held_out", "all"]
SweepRule = Literal["annotated", "past"]
"""Which sweep of a LiDAR a moment has: the one that its annotations describe, part of which is later than the moment,
or the newest that had ended by then."""
UNREADABLE = (
    OSError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError, EOFError,
    zlib.error, struct.error, zipfile.BadZipFile,
)  # fmt: skip
"""What a file raises that is damaged or laid out differently; `SceneError` is a `ValueError`, those of archives are
none of the usual kinds."""
HELD_OUT_ONE_IN = 10
"""Of the logs of a dataset without official splits, one in so many is held out."""


def fault_of(place: str | Path, error: Exception) -> str:
    """Returns what is wrong where reading `place` raised `error`, one of `UNREADABLE`."""
    if isinstance(error, SceneError) or (isinstance(error, OSError) and error.filename is not None):
        return str(error)  # names the file
    return f"{place}: {error!r}: is damaged or laid out differently; fetch it again"


def inside(root: Path, name: str) -> Path:
    """Returns the file that a table names, below `root`; links are followed. Raises `SceneError` for a name that leads
    elsewhere: no dataset chooses among the machine's files.
    """
    if leads_out(name):
        raise SceneError(f"{root}: {name!r}: leads out of the dataset's folder; name a file in it")
    return root / name


def leads_out(name: str) -> bool:
    """Returns whether a path is absolute, or goes up from the folder that it starts in."""
    return Path(name).is_absolute() or Path(os.path.normpath(name)).parts[:1] == (os.pardir,)


def hashed_split(name: str) -> LogSplit:
    """Returns the split of a name: one in `HELD_OUT_ONE_IN` is held out, whatever others there are."""
    number = int.from_bytes(hashlib.sha256(f"split/{name}".encode(errors="surrogatepass")).digest()[:8], "big")
    return "train" if number % HELD_OUT_ONE_IN else "held_out"


def walk(folder: str | Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yields each folder at or below `folder`, in the order of their paths, with the names of its folders and those of
    its files; a caller removes names of folders that it need not see. Links are followed, and what several lead to is
    seen once, so that a link to a folder above ends the way.
    """
    seen: set[str] = set()
    for place, names, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            names.clear()
            continue
        seen.add(real)
        names.sort()
        yield Path(place), names, sorted(files)


def files_below(folder: str | Path, pattern: str = "*") -> list[Path]:
    """Returns the files below `folder` whose names match `pattern`, sorted. Links are followed, see `walk`."""
    return sorted(place / name for place, _, files in walk(folder) for name in fnmatch.filter(files, pattern))


@dataclass(frozen=True, slots=True)
class RecordedLog:
    """A drive, or a part of one. A split has all of its frames or none."""

    name: str
    """The log's name, unique in its dataset; scenes give it as `log` of their provenance."""
    frames: tuple[Frame, ...]
    """Frames that can become scenes, in the order of time."""
    official: LogSplit | None = None
    """The split that the dataset's authors put it in; None where the layout tells none."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Frames that can't become scenes, by the reason."""
    files: tuple[str, ...] = ()
    """Files that frames are read from, in addition to their own, and folders of such files: a change of one writes new
    shards."""

    @property
    def split(self) -> LogSplit:
        """The official split; else the log is held out by a hash of its name, which no other log changes."""
        if self.official is not None:
            return self.official
        return hashed_split(self.name)


def each_once(logs: Iterable[RecordedLog]) -> Iterator[RecordedLog]:
    """Yields logs of datasets that name a log the same wherever it lies. Of copies in several folders one keeps its
    frames: one whose split is official, held out before train, and of these the one with the most frames. The frames of
    the others are counted. Else a scene would be there twice, perhaps in both splits.
    """
    found = list(logs)
    best: dict[str, RecordedLog] = {}
    for log in found:
        if log.frames and (log.name not in best or _rank(log) > _rank(best[log.name])):
            best[log.name] = log
    for log in found:
        if log.frames and best[log.name] is not log:
            counts = {
                f"frame of a log that lies in another folder, too ({Path(log.frames[0][0]).parent})": len(log.frames)
            }
            yield replace(log, frames=(), left_out=counts)
        else:
            yield log


def _rank(log: RecordedLog) -> tuple[bool, bool, int]:
    return log.official is not None, log.official == "held_out", len(log.frames)


NO_PERCEPTION = "what a perception stack found is not recorded"
"""Why most datasets lack `perception`."""


class RecordedDataset(Protocol):
    """A public dataset in its own layout, as a component. It pickles to the processes that convert."""

    lacks: Mapping[str, str]
    """Fields of `Scene` that no scene of the dataset has, each with the reason: tasks that need them are impossible."""

    def find_logs(self, folder: str) -> Iterable[RecordedLog]:
        """Yields the logs below `folder`; none where there is no recording of this dataset. Reads no sensor.

        Raises `SceneError` for a description of recordings that is damaged.
        """
        ...

    def read_scene(self, frame: Frame) -> Scene:
        """Returns the scene of one frame. Raises `SceneError`, `OSError`, `KeyError`, `IndexError` or `ValueError`
        for a file that is missing, damaged or laid out differently.
        """
        ...
