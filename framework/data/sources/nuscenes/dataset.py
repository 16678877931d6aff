"""nuScenes as a dataset: as downloaded, or as the info files of MMDetection3D describe it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from framework.data.sources.base import Frame, RecordedLog, files_below
from framework.data.sources.nuscenes import info
from framework.data.sources.nuscenes.maps import map_file
from framework.data.sources.nuscenes.moment import read_moment, sweep_of
from framework.data.sources.nuscenes.splits import official_split
from framework.data.sources.nuscenes.tables import LIDAR, TABLES, Drive, Tables, read_tables
from framework.recipe.component import component
from framework.scene.types import Scene, SceneError

SAMPLES = "sample.json"


@component
@dataclass(frozen=True)
class NuScenes:
    """Key frames of nuScenes. As downloaded, every folder `v1.0-*` next to `samples/` and `sweeps/` is a version, whose
    scenes are logs with official splits; a scene of several versions is read from the first. An `info.json` describes
    single frames in the layout of MMDetection3D, whose drives are logs.
    """

    lacks: ClassVar = {"thought": "nobody wrote any"}

    def find_logs(self, folder: str) -> Iterator[RecordedLog]:
        """See `RecordedDataset`."""
        yield from info.find_logs(folder)
        known: set[str] = set()
        versions = {path.parent for path in files_below(folder, "*.json") if path.parent.name.startswith("v1.0-")}
        for path in sorted(versions, key=lambda path: (path.name.endswith("mini"), str(path))):
            yield from _logs_of(path, known)

    def read_scene(self, frame: Frame) -> Scene:
        """See `RecordedDataset`."""
        path = Path(frame[0])
        return read_moment(str(path.parent), frame[1]) if path.name == SAMPLES else info.read_scene(frame)


def _logs_of(folder: Path, known: set[str]) -> Iterator[RecordedLog]:
    """Yields the logs of the version in `folder`, those of `known` names without frames; adds their names to it."""
    try:
        tables = read_tables(str(folder))
    except SceneError as error:
        yield RecordedLog(str(folder), (), left_out={str(error): 1})
        return
    for drive in tables.drives.values():
        yield _log_of(tables, drive, drive.name in known)
    known.update(tables.drives)


def _log_of(tables: Tables, drive: Drive, is_repeated: bool) -> RecordedLog:
    """Returns a drive as a log. Its key frames are left out if the whole drive is unusable or read from elsewhere, and
    those whose sweep is not there.
    """
    official = official_split(tables.folder.name, drive.name)
    path = tables.folder / SAMPLES
    fault = "key frame of a scene that another version has, too" if is_repeated else drive.fault
    if fault is not None:
        reason = fault if is_repeated else f"{drive.name}: {tables.folder}/{fault}"
        return RecordedLog(drive.name, (), official, {reason: len(drive.samples)})
    sweeps = {row: sweep_of(drive, sample) for row, sample in drive.samples.items()}
    there = [row for row, sweep in sweeps.items() if sweep is not None and (tables.root / sweep.file).is_file()]
    there.sort(key=lambda row: drive.samples[row].time)
    left_out = {f"{channel} reading between key frames": count for channel, count in drive.between.items()}
    gone = len(sweeps) - len(there)
    if gone:
        left_out[f"key frame without its sweep in samples/{LIDAR}; fetch the blobs that hold it"] = gone
    if messages := len(list(tables.root.glob(f"can_bus/{drive.name}_*.json"))):
        left_out["CAN bus file"] = messages
    files = [*(tables.folder / f"{name}.json" for name in TABLES), map_file(tables.root, drive.location)]
    return RecordedLog(
        drive.name,
        tuple((str(path), row) for row in there),
        official,
        left_out,
        tuple(str(file) for file in files if file.is_file()) if there else (),
    )
