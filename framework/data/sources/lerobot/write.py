"""Scenes written as a LeRobotDataset v3, so that other trainers can learn from them.

A scene is a row. The scenes of a log that follow each other at the dataset's rate are an episode, a single one too:

    observation.state            x, y (m), heading (rad) in the frame of the episode's first row, and speed (m/s)
    action                       acceleration (m/s^2) and curvature (1/m) at the moment: the plan's first control
    observation.history, plan    x, y, heading and speed of the past and of the future, at 4 Hz, in the ego frame
    observation.images.NAME      the newest image of a camera

The rest of a scene has no place in the format, and the report counts it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from framework.data.sources.lerobot.layout import CALIBRATION, EPISODES, INFO
from framework.data.sources.tracks import FUTURE, PAST, SECOND
from framework.run.files import write_json
from framework.scene.frames import invert, rigid, wrap_angle, yaw_of, yaw_rotation
from framework.scene.image import read_frame
from framework.scene.kinematics import unicycle_controls
from framework.scene.types import RATE_HZ, Camera, FloatArray, Scene, SceneError, Trajectory
from framework.scene.video import BT601, write_clip

STATE, CONTROL = ["x", "y", "heading", "speed"], ["acceleration", "curvature"]
VECTORS = {
    "observation.state": STATE,
    "action": CONTROL,
    "observation.history": [f"{n}@{(step - PAST) / RATE_HZ:+g}" for step in range(PAST + 1) for n in STATE],
    "plan": [f"{n}@{(step + 1) / RATE_HZ:+g}" for step in range(FUTURE) for n in STATE],
}
"""Names of the numbers of each vector."""
COUNTERS = {"timestamp": "float32", **dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), "int64")}
CHUNK = 1000
"""Files of a folder."""
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
APART = 0.2
"""Part of a period by which neighbouring rows may be nearer or farther apart."""
TASKS = {"follow": "follow the road", "left": "turn left", "right": "turn right", "straight": "go straight on"}
"""The task of a scene by its command."""


@dataclass
class Report:
    """What was written."""

    episodes: int = 0
    rows: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    """Scenes without a row, and what of a scene its row has not, by reason."""

    def __str__(self) -> str:
        """Returns a line for each count."""
        lines = [f"{self.rows} rows in {self.episodes} episodes"]
        return "\n".join(lines + [f"left out: {what}: {count}" for what, count in sorted(self.left_out.items())])


@dataclass(frozen=True, slots=True)
class Row:
    """A scene on its way."""

    vectors: Mapping[str, FloatArray]
    cameras: Mapping[str, Camera]
    task: str


def write_lerobot(
    scenes: Iterable[Scene], folder: Path, rate_hz: float, plans: Mapping[str, Trajectory] | None = None
) -> Report:
    """Writes scenes as a dataset of `rate_hz` rows a second into a new folder. `plans` take the place of the futures of
    scenes by their ids. `meta/info.json` comes last: a folder without it is unfinished.

    Raises `SceneError` where no scene makes a row, and `FileExistsError` for a folder that has something in it.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder}: has something in it; give a new folder")
    report = Report()
    writer = _Writer(folder, rate_hz, report)
    for episode in _episodes(scenes, rate_hz, plans or {}, report):
        writer.add(episode)
    writer.finish()
    return report


def _episodes(
    scenes: Iterable[Scene], rate_hz: float, plans: Mapping[str, Trajectory], report: Report
) -> Iterator[list[Row]]:
    """Yields the rows of each episode."""
    rows: list[Row] = []
    before: Scene | None = None
    pose = np.eye(4)
    rig: dict[str, tuple[int, int]] = {}
    for scene in scenes:
        future = plans.get(scene.id, scene.future)
        fault = _fault(scene, future, rig)
        if fault:
            report.left_out[fault] += 1
            continue
        assert scene.history is not None
        assert future is not None
        step = None if before is None else _step(before, scene, rate_hz)
        if step is None:
            if rows:
                yield rows
            rows, pose = [], np.eye(4)
        else:
            pose = pose @ step
        rows.append(_row(scene, future, pose))
        before = scene
        report.left_out.update(_lost(scene))
    if rows:
        yield rows


def _fault(scene: Scene, future: Trajectory | None, rig: dict[str, tuple[int, int]]) -> str | None:
    """Returns why a scene makes no row; the first scene's cameras become the `rig`."""
    if scene.history is None or scene.history.states.shape != (PAST + 1, 4):
        return "scene without a history"
    if future is None or future.states.shape != (FUTURE, 4):
        return "scene without a future"
    sizes = {camera.name: (camera.width, camera.height) for camera in scene.cameras}
    if rig and sizes != rig:
        return "scene with other cameras than the first one"
    try:
        for camera in scene.cameras:
            read_frame(camera, len(camera.times) - 1)
    except SceneError as error:
        return f"scene with an {error}"
    rig.update(sizes)
    return None


def _lost(scene: Scene) -> Counter[str]:
    """Returns what of a scene its row has not."""
    fields = ("lidar", "radar", "boxes", "perception", "surroundings", "caption", "thought", "questions")
    lost = Counter({name: 1 for name in fields if getattr(scene, name)})
    lost["image before the newest"] = sum(len(camera.times) - 1 for camera in scene.cameras)
    return Counter({name: count for name, count in lost.items() if count})


def _step(before: Scene, after: Scene, rate_hz: float) -> FloatArray | None:
    """Returns the pose `(4, 4)` of a scene in the one before, from its history; None where it does not follow it."""
    log, stamps = after.provenance.get("log"), [scene.provenance.get("timestamp", "") for scene in (before, after)]
    if log is None or log != before.provenance.get("log") or not all(stamp.isdecimal() for stamp in stamps):
        return None
    seconds = (int(stamps[1]) - int(stamps[0])) / SECOND
    assert after.history is not None
    if abs(seconds * rate_hz - 1.0) > APART or seconds > PAST / RATE_HZ:
        return None
    states = after.history.states.astype(np.float64)
    times = (np.arange(len(states)) - PAST) / RATE_HZ
    x, y, heading = (
        np.interp(-seconds, times, np.unwrap(states[:, axis]) if axis == 2 else states[:, axis]) for axis in range(3)
    )
    return invert(rigid(yaw_rotation(heading), np.array([x, y, 0.0])))


def _row(scene: Scene, future: Trajectory, pose: FloatArray) -> Row:
    assert scene.history is not None
    now = scene.history.states[-1]
    state = np.array([pose[0, 3], pose[1, 3], wrap_angle(np.array(yaw_of(pose[:3, :3]))), now[3]])
    vectors = {
        "observation.state": state,
        "action": unicycle_controls(now, future.states[:1], 1.0 / future.rate_hz)[0],
        "observation.history": scene.history.states.ravel(),
        "plan": future.states.ravel(),
    }
    cameras = {f"observation.images.{camera.name}": camera for camera in scene.cameras}
    task = scene.provenance.get("task") or TASKS[scene.command]
    return Row({name: value.astype(np.float32) for name, value in vectors.items()}, cameras, task)


class _Writer:
    """The files of a dataset, an episode after the other. A data file holds the episodes of a chunk of videos."""

    def __init__(self, folder: Path, rate_hz: float, report: Report) -> None:
        self.folder, self.rate_hz, self.report = folder, rate_hz, report
        self.tasks: dict[str, int] = {}
        self.table: list[dict[str, Any]] = []
        self.stats: list[dict[str, dict[str, Any]]] = []
        self.cameras: dict[str, Camera] = {}
        self.data: parquet.ParquetWriter | None = None

    def add(self, rows: Sequence[Row]) -> None:
        """Writes an episode."""
        number, first, count = self.report.episodes, self.report.rows, len(rows)
        self.cameras = self.cameras or dict(rows[0].cameras)
        places = {"chunk_index": number // CHUNK, "file_index": number % CHUNK}
        entry: dict[str, Any] = {"episode_index": number, "length": count, "tasks": sorted({row.task for row in rows})}
        entry |= {"data/chunk_index": 0, "data/file_index": number // CHUNK}
        entry |= {"dataset_from_index": first, "dataset_to_index": first + count}
        columns: dict[str, npt.NDArray[Any]] = {name: np.stack([row.vectors[name] for row in rows]) for name in VECTORS}
        columns["timestamp"] = (np.arange(count) / self.rate_hz).astype(np.float32)
        columns["frame_index"] = np.arange(count)
        columns["episode_index"] = np.full(count, number)
        columns["index"] = first + np.arange(count)
        columns["task_index"] = np.array([self.tasks.setdefault(row.task, len(self.tasks)) for row in rows])
        stats = {name: _statistics(values.reshape(count, -1)) for name, values in columns.items()}
        for name in self.cameras:
            path = self.folder / VIDEO.format(video_key=name, **places)
            stats[name] = _encode([row.cameras[name] for row in rows], path, self.rate_hz)
            entry |= {f"videos/{name}/{key}": value for key, value in places.items()}
            entry |= {f"videos/{name}/from_timestamp": 0.0, f"videos/{name}/to_timestamp": count / self.rate_hz}
        entry |= {f"stats/{name}/{key}": value for name, each in stats.items() for key, value in each.items()}
        entry |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        self._write_rows(columns, number)
        self.table.append(entry)
        self.stats.append(stats)
        self.report.episodes += 1
        self.report.rows += count

    def _write_rows(self, columns: Mapping[str, npt.NDArray[Any]], number: int) -> None:
        arrays = {name: _arrow(values) for name, values in columns.items()}
        table = pa.table(arrays)
        if number % CHUNK == 0:
            self.close()
            path = self.folder / DATA.format(chunk_index=0, file_index=number // CHUNK)
            path.parent.mkdir(parents=True, exist_ok=True)
            self.data = parquet.ParquetWriter(path, table.schema)
        assert self.data is not None
        self.data.write_table(table)

    def close(self) -> None:
        """Ends the data file."""
        if self.data is not None:
            self.data.close()

    def finish(self) -> None:
        """Writes `meta/`. Raises `SceneError` where there is no row."""
        self.close()
        if not self.table:
            reasons = "; ".join(f"{what}: {count}" for what, count in self.report.left_out.items())
            raise SceneError(f"{self.folder}: no scene makes a row ({reasons}); give scenes with a past and a future")
        episodes = self.folder / EPISODES / "chunk-000/file-000.parquet"
        episodes.parent.mkdir(parents=True)
        parquet.write_table(pa.Table.from_pylist(self.table), episodes)
        tasks = pa.table({"task_index": list(self.tasks.values()), "task": list(self.tasks)})
        # lerobot reads the table with pandas, and looks tasks up in its index.
        kinds = {"task_index": ("int64", "int64"), "task": ("unicode", "object")}
        columns = [
            {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": type_, "metadata": None}
            for name, (kind, type_) in kinds.items()
        ]
        index = json.dumps({"index_columns": ["task"], "column_indexes": [], "columns": columns})
        parquet.write_table(tasks.replace_schema_metadata({"pandas": index}), self.folder / "meta/tasks.parquet")
        write_json(self.folder / "meta/stats.json", _merged(self.stats))
        write_json(self.folder / INFO, self._info())

    def _info(self) -> dict[str, Any]:
        features: dict[str, Any] = {
            name: {"dtype": "float32", "shape": [len(names)], "names": names} for name, names in VECTORS.items()
        }
        for name, camera in self.cameras.items():
            width, height = _even(camera)
            video = {"video.fps": self.rate_hz, "video.codec": "h264", "video.pix_fmt": "yuv420p"}
            video |= {"video.height": height, "video.width": width, "video.channels": 3, "has_audio": False}
            shape = {"shape": [height, width, 3], "names": ["height", "width", "channels"]}
            info = {**video, "video.is_depth_map": False, CALIBRATION: _calibration(camera)}
            features[name] = {"dtype": "video", **shape, "info": info}
        features |= {name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in COUNTERS.items()}
        rate = int(self.rate_hz) if float(self.rate_hz).is_integer() else self.rate_hz
        return {
            "codebase_version": "v3.0",
            "robot_type": "car",
            "total_episodes": self.report.episodes,
            "total_frames": self.report.rows,
            "total_tasks": len(self.tasks),
            "chunks_size": CHUNK,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "fps": rate,
            "splits": {"train": f"0:{self.report.episodes}"},
            "data_path": DATA,
            "video_path": VIDEO,
            "features": features,
        }


def _arrow(values: npt.NDArray[Any]) -> pa.Array:
    flat = pa.array(values.ravel())
    return flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _even(camera: Camera) -> tuple[int, int]:
    """Returns the size of a camera's video: H.264's colours need even sides, so that an odd last line is cut off."""
    return camera.width // 2 * 2, camera.height // 2 * 2


def _encode(cameras: Sequence[Camera], path: Path, rate_hz: float) -> dict[str, Any]:
    """Writes the newest images of `cameras` as a video; returns the statistics of its channels, 0 to 1."""
    size = _even(cameras[0])
    pixels: list[FloatArray] = []

    def images() -> Iterator[Image.Image]:
        for camera in cameras:
            image = read_frame(camera, len(camera.times) - 1).crop((0, 0, *size))
            pixels.append(np.asarray(image)[::8, ::8].reshape(-1, 3) / 255.0)
            yield image

    path.parent.mkdir(parents=True, exist_ok=True)
    write_clip(path, images(), size, rate_hz, key_every=2, matrix=BT601)
    stats = _statistics(np.concatenate(pixels))
    shaped = {name: np.reshape(value, (3, 1, 1)).tolist() for name, value in stats.items() if name != "count"}
    return {**shaped, "count": [len(cameras)]}


def _calibration(camera: Camera) -> dict[str, Any]:
    lens = camera.lens
    made = None if lens is None else {"model": lens.model, "coefficients": np.asarray(lens.coefficients).tolist()}
    return {"intrinsic": camera.intrinsic.tolist(), "extrinsic": camera.extrinsic.tolist(), "lens": made}


def _statistics(values: npt.NDArray[Any]) -> dict[str, list[Any]]:
    """Returns what LeRobot's normalisation asks of values `(n, k)`, each `(k,)`."""
    stats = {
        "min": values.min(axis=0),
        "max": values.max(axis=0),
        "mean": values.mean(axis=0),
        "std": values.std(axis=0),
    }
    stats |= dict(zip(QUANTILES, np.quantile(values, list(QUANTILES.values()), axis=0), strict=True))
    return {**{name: value.tolist() for name, value in stats.items()}, "count": [len(values)]}


def _merged(episodes: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Returns the statistics of all episodes: exact, but for the quantiles, which are the episodes' weighted mean, as
    in LeRobot.
    """
    merged = {}
    for name in episodes[0]:
        parts = {key: np.array([each[name][key] for each in episodes], dtype=np.float64) for key in episodes[0][name]}
        weight = (parts["count"] / parts["count"].sum()).reshape(-1, *[1] * (parts["mean"].ndim - 1))
        mean = (weight * parts["mean"]).sum(axis=0)
        spread = (weight * (parts["std"] ** 2 + (parts["mean"] - mean) ** 2)).sum(axis=0)
        stats = {"min": parts["min"].min(axis=0), "max": parts["max"].max(axis=0), "mean": mean, "std": np.sqrt(spread)}
        stats |= {key: (weight * parts[key]).sum(axis=0) for key in QUANTILES}
        merged[name] = {**{key: value.tolist() for key, value in stats.items()}, "count": [int(parts["count"].sum())]}
    return merged
