"""nuScenes as a dataset: as downloaded, or as the info files of MMDetection3D describe it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from framework.data.sources.base import NO_PERCEPTION, UNREADABLE, Frame, RecordedLog, fault_of, files_below
from framework.data.sources.nuscenes import info
from framework.data.sources.nuscenes.can_bus import can_bus_files, survey_can_bus
from framework.data.sources.nuscenes.join import read_tables
from framework.data.sources.nuscenes.maps import map_file
from framework.data.sources.nuscenes.moment import has_sensor, read_moment, sweep_of
from framework.data.sources.nuscenes.splits import official_split
from framework.data.sources.nuscenes.tables import AGAIN, LIDAR, TABLES, Drive, Tables
from framework.recipe.component import component
from framework.scene.types import Scene

SAMPLES = "sample.json"


@component
@dataclass(frozen=True)
class NuScenes:
    """Key frames of nuScenes. As downloaded, every folder `v1.0-*` next to `samples/` and `sweeps/` is a version, whose
    scenes are logs with official splits; a scene of several versions is read from the first. An `info.json` describes
    single frames in the layout of MMDetection3D, whose drives are logs.
    """

    lacks: ClassVar = {"perception": NO_PERCEPTION, "thought": "nobody wrote any"}

    def find_logs(self, folder: str) -> Iterator[RecordedLog]:
        """See `RecordedDataset`."""
        seen: set[str] = set()
        known: set[str] = set()
        versions = {path.parent for path in files_below(folder, "*.json") if path.parent.name.startswith("v1.0-")}
        for path in sorted(versions, key=lambda path: (path.name.endswith("mini"), str(path))):
            yield from _logs_of(path, known, seen)
        yield from (_unseen(log, seen) for log in info.find_logs(folder))

    def read_scene(self, frame: Frame) -> Scene:
        """See `RecordedDataset`."""
        path = Path(frame[0])
        return read_moment(str(path.parent), frame[1]) if path.name == SAMPLES else info.read_scene(frame)


def _logs_of(folder: Path, known: set[str], seen: set[str]) -> Iterator[RecordedLog]:
    """Yields the logs of the version in `folder`, those of `known` names without frames. Adds the names of those with
    frames to them, and the tokens of these to those that were `seen`.
    """
    try:
        tables = read_tables(str(folder))
    except UNREADABLE as error:
        yield RecordedLog(str(folder), (), left_out={fault_of(folder, error): 1})
        return
    if tables.left_out:
        yield RecordedLog(str(folder), (), left_out=tables.left_out)
    for drive in tables.drives.values():
        log = _log_of(tables, drive, drive.name in known)
        if log.frames:
            known.add(drive.name)
            seen.update(drive.samples[row].token for _, row in log.frames)
        yield log


def _unseen(log: RecordedLog, seen: set[str]) -> RecordedLog:
    """Returns a log of an info file without the key frames that were `seen`; adds the others."""
    frames = []
    for frame in log.frames:
        token = info.token_of(frame)
        if token is None or token not in seen:
            frames.append(frame)
        if token is not None:
            seen.add(token)
    repeated = len(log.frames) - len(frames)
    counts = {"key frame of an info file that is read from elsewhere": repeated} if repeated else {}
    return replace(log, frames=tuple(frames), left_out={**log.left_out, **counts})


def _log_of(tables: Tables, drive: Drive, is_repeated: bool) -> RecordedLog:
    """Returns a drive as a log. Its key frames are left out if the whole drive is unusable or read from elsewhere, and
    those of which no sensor's file is there. One that lacks its sweep alone is kept, and its scene counts that.
    """
    official = official_split(tables.folder.name, drive.name)
    path = tables.folder / SAMPLES
    fault = "key frame of a scene that another version has, too" if is_repeated else drive.fault
    if fault is not None:
        reason = fault if is_repeated else f"{drive.name}: {tables.folder}/{fault}"
        return RecordedLog(drive.name, (), official, {reason: len(drive.samples)})
    sweeps = {row: sweep_of(drive, sample) for row, sample in drive.samples.items()}
    listed = {row: sweep for row, sweep in sweeps.items() if sweep is not None}
    there = [row for row, sweep in listed.items() if has_sensor(tables, drive, sweep)]
    there.sort(key=lambda row: drive.samples[row].time)
    left_out = {f"{channel} reading between key frames": count for channel, count in drive.between.items()}
    if unlisted := len(sweeps) - len(listed):
        left_out[f"key frame without a row of {LIDAR} in sample_data.json; {AGAIN}"] = unlisted
    if gone := len(listed) - len(there):
        left_out["key frame without a file of any sensor; fetch the blobs that hold them"] = gone
    left_out |= survey_can_bus(tables.root, drive.name)
    files = [*(tables.folder / f"{name}.json" for name in TABLES), map_file(tables.root, drive.location)]
    files += can_bus_files(tables.root, drive.name).values()
    read = (each for channel, of in drive.readings.items() for each in of if channel != LIDAR or each.is_key)
    folders = sorted({(tables.root / each.file).parent for each in read})
    return RecordedLog(
        drive.name,
        tuple((str(path), row) for row in there),
        official,
        left_out,
        tuple(str(file) for file in [*files, *folders] if file.exists()) if there else (),
    )
