"""The files of a LeRobotDataset v3: what `meta/` says, and the rows of an episode.

meta/info.json                  rate, features, and the patterns of the files
meta/episodes/*/*.parquet       each episode's length, tasks, and where its rows and videos are
data/*/*.parquet                a row a frame; a file holds several episodes
videos/KEY/*/*.mp4              the frames of a camera, several episodes in a file
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from framework.data.sources.arrow import reads
from framework.data.sources.base import LogSplit, inside
from framework.scene.types import FloatArray, SceneError

INFO, EPISODES = "meta/info.json", "meta/episodes"
CALIBRATION = "calibration"
"""The entry in a camera's `info` that holds its calibration; LeRobot itself has none."""
AGAIN = "fetch or write the dataset again"


@dataclass(frozen=True, slots=True)
class Feature:
    """A column of the rows, or a camera."""

    dtype: str
    """`video`, `image`, or the type of the numbers."""
    shape: tuple[int, ...]
    """Of a row's value."""
    names: tuple[str, ...]
    """Of the numbers of a vector; empty where they have none."""
    calibration: Mapping[str, Any] | None
    """A camera's, where our writer wrote it."""


@dataclass(frozen=True, slots=True)
class Clip:
    """Where an episode lies in a video."""

    path: Path
    """The file."""
    start_s: float
    """The time of its first frame."""


@dataclass(frozen=True, slots=True)
class Episode:
    """A stretch of rows that follow each other in time."""

    index: int
    """Its number."""
    first: int
    """The number of its first row in the dataset."""
    length: int
    """Rows."""
    data: Path
    """The file of the rows."""
    clips: Mapping[str, Clip]
    """The videos by camera."""
    tasks: tuple[str, ...]
    """What was to be done, in words."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A dataset, without its rows."""

    root: Path
    """Its folder."""
    rate_hz: float
    """Rows per second."""
    features: Mapping[str, Feature]
    """By name."""
    episodes: Sequence[Episode]
    """In the order of their rows."""
    held_out: Sequence[range] | None
    """Episodes of splits other than `train`; None where there is no other."""

    @property
    def cameras(self) -> dict[str, Feature]:
        """The features that are cameras."""
        return {name: feature for name, feature in self.features.items() if feature.dtype in ("video", "image")}

    def split(self, episode: Episode) -> LogSplit | None:
        """Returns the split that the dataset's authors put an episode in; None where all are `train`."""
        if self.held_out is None:
            return None
        return "held_out" if any(episode.index in numbers for numbers in self.held_out) else "train"


def read_layout(root: Path) -> Layout:
    """Returns what `meta/` says. Raises `SceneError` where it is damaged or of another version."""
    path = root / INFO
    try:
        info = json.loads(path.read_bytes())
        version = str(info["codebase_version"])
        if not version.startswith("v3."):
            raise SceneError(f"{path}: codebase_version: {version}; convert the dataset to v3.0 with lerobot's script")
        features = {name: _feature(value) for name, value in info["features"].items()}
        splits = {name: range(*map(int, text.split(":"))) for name, text in (info.get("splits") or {}).items()}
        others = [numbers for name, numbers in splits.items() if name != "train"]
        patterns = str(info["data_path"]), str(info.get("video_path") or "")
        rate_hz = float(info["fps"])
        if not 0.0 < rate_hz < 1e4:
            raise SceneError(f"{path}: fps: {rate_hz} is no rate; {AGAIN}")
    except SceneError:
        raise
    except OSError as error:
        raise SceneError(f"{path}: {error.strerror}; {AGAIN}") from error
    except KeyError as error:
        raise SceneError(f"{path}: {error.args[0]}: is missing; {AGAIN}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise SceneError(f"{path}: {error}: is no description of a dataset; {AGAIN}") from error
    cameras = [name for name, feature in features.items() if feature.dtype == "video"]
    return Layout(root, rate_hz, features, _episodes(root, patterns, cameras), others or None)


def _feature(value: Mapping[str, Any]) -> Feature:
    names = value.get("names")
    while isinstance(names, Mapping) and len(names) == 1:  # {"motors": [...]} of older datasets
        (names,) = names.values()
    calibration = (value.get("info") or {}).get(CALIBRATION)
    flat = tuple(map(str, names)) if isinstance(names, list) else ()
    return Feature(str(value["dtype"]), tuple(map(int, value["shape"])), flat, calibration)


def _episodes(root: Path, patterns: tuple[str, str], cameras: Sequence[str]) -> list[Episode]:
    """Returns the episodes of the tables below `meta/episodes`."""
    paths = sorted((root / EPISODES).glob("*/*.parquet"))
    if not paths:
        raise SceneError(f"{root / EPISODES}: holds no table of episodes; {AGAIN}")
    places = ["chunk_index", "file_index"]
    columns = ["episode_index", "length", "tasks", "dataset_from_index", *(f"data/{place}" for place in places)]
    columns += [f"videos/{name}/{key}" for name in cameras for key in (*places, "from_timestamp")]
    episodes = []
    for path in paths:
        for row in read_table(path, columns).to_pylist():
            places_of = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
            file = inside(root, patterns[0].format(**places_of))
            clips = {}
            for name in cameras:
                chunk, number, start = (row[f"videos/{name}/{key}"] for key in (*places, "from_timestamp"))
                video = patterns[1].format(video_key=name, chunk_index=chunk, file_index=number)
                clips[name] = Clip(inside(root, video), float(start))
            first, length = row["dataset_from_index"], row["length"]
            episodes.append(Episode(row["episode_index"], first, length, file, clips, tuple(row["tasks"] or ())))
    return sorted(episodes, key=lambda episode: episode.first)


def read_table(path: Path, columns: Sequence[str], **filters: Any) -> pa.Table:
    """Returns columns of a parquet file. Raises `SceneError` where it is missing, damaged, or lacks one."""
    with reads(path, AGAIN):
        missing = sorted(set(columns) - set(parquet.read_schema(path).names))
        if missing:
            raise SceneError(f"{path}: column {', '.join(missing)}: is missing; {AGAIN}")
        return parquet.read_table(path, columns=list(columns), **filters)


@functools.lru_cache(maxsize=4)
def read_rows(episode: Path, index: int, length: int, columns: tuple[str, ...]) -> Mapping[str, FloatArray]:
    """Returns vectors `(length, k)` of the rows of an episode by feature; cached, since its frames are read in
    sequence. Raises `SceneError` where the file has other rows than `meta/` says.
    """
    table = read_table(episode, (*columns, "frame_index"), filters=[("episode_index", "=", index)])
    table = table.sort_by("frame_index")
    if not np.array_equal(table["frame_index"].to_numpy(), np.arange(length)):
        raise SceneError(f"{episode}: frame_index: episode {index} has not the {length} rows of its table; {AGAIN}")
    return {name: np.array(table[name].to_pylist(), dtype=np.float64).reshape(length, -1) for name in columns}


@functools.lru_cache(maxsize=2)
def open_layout(root: str) -> Layout:
    """Returns `read_layout` of a folder, kept for its next frame."""
    return read_layout(Path(root))
