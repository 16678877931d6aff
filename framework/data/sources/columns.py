"""Rows of anybody's tables as scenes, by a mapping of columns: MDS shards, parquet, a Hugging Face dataset on disk,
WebDataset tars and JSON lines.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from annotated_types import Interval

from framework.data.sources.base import UNREADABLE, Frame, RecordedLog, fault_of
from framework.data.sources.media import Sampling, load
from framework.data.sources.rows import LOOKED_AT, Rows, find_files, open_rows
from framework.data.sources.turns import Reference
from framework.recipe.component import component
from framework.recipe.problem import nearest
from framework.scene.types import Boxes, Camera, FloatArray, Lidar, Question, Radar, Scene, SceneError, Trajectory

TEXTS = ("id", "log", "kind", "command", "caption", "thought")
ARRAYS = {
    "history": 4, "future": 4,
    "boxes": 9, "perception": 9, "boxes.track_ids": 0, "boxes.points": 0, "perception.scores": 0,
    "lidar": 4, "lidar.extrinsic": 4, "radar": 5, "radar.extrinsic": 4,
}  # fmt: skip
"""Fields that are arrays, each with the length of its rows; 0 for a single row."""
LISTS = ("boxes.labels", "perception.labels", "questions")
OF_CAMERAS = {"image": 0, "intrinsic": 3, "extrinsic": 4}
NEEDED = {
    "boxes": "boxes.labels", "boxes.labels": "boxes", "perception": "perception.labels",
    "perception.labels": "perception", "lidar.extrinsic": "lidar", "radar.extrinsic": "radar",
    "boxes.track_ids": "boxes", "boxes.points": "boxes", "perception.scores": "perception",
}  # fmt: skip
"""Fields that mean nothing without another one."""
WHOLE = Sampling(rate_hz=1.0, most=1)


@component
@dataclass(frozen=True)
class Columns:
    """Tables whose rows are scenes, one row each.

    A column is named by its name; within it, keys and numbers of a list follow after dots: `images.0`, `ego.past`.
    A row in which a column is null lacks the field.

    Raises:
        ValueError: `columns` or `constants` name a field that there is not, or one without that which it belongs to.
    """

    columns: Mapping[str, str]
    """The column of each field. Fields are `id`, `log` (rows with one value are a log, which is in one split; else each
    file is), `kind`, `command`, `caption`, `thought`, `questions` (pairs of question and answer), `history`, `future`,
    `boxes` and `perception` (with `.labels`, and `.track_ids`, `.points` or `.scores`), `lidar` and `radar` (with
    `.extrinsic`), and of each camera `cameras.NAME.image`, `.intrinsic` and `.extrinsic`. Arrays have the shapes,
    units and frames of `framework.scene.types`."""
    constants: Mapping[str, Any] = field(default_factory=dict)
    """Values of fields that are the same in every row, such as `cameras.front.intrinsic`."""
    rate_hz: Annotated[float, Interval(ge=1e-6, le=1000)] = 4.0
    """States a second of `history` and `future`."""

    def __post_init__(self) -> None:
        named = [*self.columns, *self.constants]
        for name in named:
            if not _is_field(name):
                known = [*TEXTS, *ARRAYS, *LISTS, *(f"cameras.NAME.{part}" for part in OF_CAMERAS)]
                near = nearest(name, known)
                meant = f" (did you mean {near}?)" if near else ""
                raise ValueError(f"columns.{name}: no field of a scene{meant}; there are: {', '.join(known)}")
            if name in NEEDED and NEEDED[name] not in named:
                raise ValueError(f"columns.{name}: needs {NEEDED[name]}; name its column, too")
        for camera in self._cameras:
            for part in OF_CAMERAS:
                if f"cameras.{camera}.{part}" not in named:
                    raise ValueError(
                        f"columns.cameras.{camera}: needs cameras.{camera}.{part}; name its column, or its value in "
                        "constants"
                    )

    @property
    def lacks(self) -> dict[str, str]:
        """See `RecordedDataset`."""
        given = {name.partition(".")[0] for name in (*self.columns, *self.constants)}
        fields = (
            "cameras", "lidar", "radar", "boxes", "perception", "history", "future", "surroundings", "questions",
            "caption", "thought",
        )  # fmt: skip
        return {name: "no column is named for it" for name in fields if name not in given}

    def find_logs(self, folder: str) -> Iterator[RecordedLog]:
        """See `RecordedDataset`. Reads every row where `log` is a column. Raises `SceneError` for a column that a file
        has not.
        """
        if not Path(folder).exists():
            return
        for path in find_files(Path(folder)):
            try:
                rows = open_rows(path)
            except UNREADABLE as error:
                yield RecordedLog(_log_of(path), (), left_out={f"file that can't be read ({fault_of(path, error)})": 1})
                continue
            if not len(rows):
                continue
            if unread := self._check(path, rows):
                yield RecordedLog(_log_of(path), (), left_out=unread)
            files = tuple(str(each) for each in sorted(path.parent.glob("*.mds*"))) if path.name == "index.json" else ()
            logs = [(self._log(rows, number) or _log_of(path), number) for number in range(len(rows))]
            for log, numbers in groupby(sorted(logs), key=lambda pair: pair[0]):
                yield RecordedLog(log, tuple((str(path), number) for _, number in numbers), files=files)

    def read_scene(self, frame: Frame) -> Scene:
        """See `RecordedDataset`."""
        path, number = Path(frame[0]), frame[1]
        rows = open_rows(path)
        row, place = rows.row(number), f"{path}{rows.place(number)}"
        if row is None:
            raise SceneError(f"{place}: holds nothing; write the row again")

        def get(name: str) -> Any:
            return value_at(row, self.columns[name]) if name in self.columns else self.constants.get(name)

        texts = {name: None if get(name) is None else str(get(name)) for name in TEXTS}
        return Scene(
            id=texts["id"] or f"{path.parent.name}/{path.name}{rows.place(number)}",
            kind=texts["kind"] or "recorded",
            command=texts["command"] or "follow",
            caption=texts["caption"],
            thought=texts["thought"],
            questions=tuple(_question(each, place) for each in _listed(get("questions"), "questions", place)),
            cameras=tuple(self._camera(name, get, path.parent, place) for name in self._cameras if _seen(name, get)),
            lidar=_sensor(Lidar, "lidar", get, place),
            radar=_sensor(Radar, "radar", get, place),
            boxes=_boxes("boxes", get, place),
            perception=_boxes("perception", get, place),
            history=self._trajectory("history", get, place),
            future=self._trajectory("future", get, place),
            provenance={"dataset": "columns", "log": texts["log"] or _log_of(path)},
        )

    @property
    def _cameras(self) -> list[str]:
        """The cameras' names, in the order in which they are named."""
        names = [name.split(".") for name in (*self.columns, *self.constants) if name.startswith("cameras.")]
        return list(dict.fromkeys(".".join(parts[1:-1]) for parts in names))

    def _log(self, rows: Rows, number: int) -> str | None:
        """Returns the log that a row names; None where it names none, or can't be read, which reading it tells."""
        if "log" not in self.columns:
            return None
        try:
            log = value_at(rows.row(number), self.columns["log"])
        except UNREADABLE:
            return None
        return None if log is None else str(log)

    def _check(self, path: Path, rows: Rows) -> dict[str, int]:
        """Returns the columns of a file that no field reads. Raises `SceneError` for a column that none of its first
        rows has.
        """
        faults: dict[str, str] = dict.fromkeys(self.columns, "")
        there: dict[str, None] = {}
        for number in range(min(LOOKED_AT, len(rows))):
            try:
                row = rows.row(number)
            except UNREADABLE:
                continue  # reading it for its scene raises it again, where it is counted
            there |= dict.fromkeys(row if isinstance(row, Mapping) else ())
            for name in list(faults):
                try:
                    value_at(row, self.columns[name])
                    del faults[name]
                except LookupError as error:
                    faults[name] = faults[name] or error.args[0]
        if not self.columns:
            raise SceneError(f"{path}: columns: none is named for a field; its rows have {', '.join(there)}")
        for name, fault in faults.items():
            if fault:
                raise SceneError(f"{path}: columns.{name}: {fault}")
        read = tuple(self.columns.values())
        unread = [name for name in there if not any(place == name or place.startswith(f"{name}.") for place in read)]
        return {f"column that is not read: {name}": len(rows) for name in unread}

    def _camera(self, name: str, get: Callable[[str], Any], folder: Path, place: str) -> Camera:
        of = f"cameras.{name}"
        medium = load(Reference("image", get(f"{of}.image")), folder, WHOLE)
        intrinsic, extrinsic = (_array(f"{of}.{part}", get, place) for part in ("intrinsic", "extrinsic"))
        if intrinsic is None or extrinsic is None:
            raise SceneError(f"{place}: {of}: has an image and no calibration; give both")
        return Camera(name, medium.frames, np.zeros(1), intrinsic, extrinsic, medium.width, medium.height)

    def _trajectory(self, name: str, get: Callable[[str], Any], place: str) -> Trajectory | None:
        states = _array(name, get, place)
        return None if states is None else Trajectory(states, self.rate_hz)


def _log_of(path: Path) -> str:
    """Returns the log of rows that name none: their file and its folder, which are the same on every machine."""
    return path.parent.name if path.name == "index.json" else f"{path.parent.name}/{path.stem}"


def value_at(row: Any, place: str) -> Any:
    """Returns what a row has at a place: a column, and keys or numbers within it after dots; None within one that is
    null. A column whose own name has dots comes first. Raises `LookupError` that names what is missing and the nearest
    there is.
    """
    if row is None:
        return None
    if isinstance(row, Mapping):
        if place in row:
            return row[place]
        heads = [key for key in row if place.startswith(f"{key}.")]
        if heads:
            head = max(heads, key=len)
            return value_at(row[head], place[len(head) + 1 :])
    elif isinstance(row, Sequence) and not isinstance(row, str | bytes):
        head, _, rest = place.partition(".")
        if head.isdecimal() and int(head) < len(row):
            return value_at(row[int(head)], rest) if rest else row[int(head)]
    there = [str(key) for key in row] if isinstance(row, Mapping) else []
    near = nearest(place, there)
    meant = f" (did you mean {near}?)" if near else ""
    raise LookupError(f"no column {place}{meant}; there are: {', '.join(there) or 'none'}")


def _is_field(name: str) -> bool:
    parts = name.split(".")
    is_of_camera = parts[0] == "cameras" and len(parts) > 2 and parts[-1] in OF_CAMERAS
    return name in TEXTS or name in ARRAYS or name in LISTS or is_of_camera


def _seen(camera: str, get: Callable[[str], Any]) -> bool:
    return get(f"cameras.{camera}.image") is not None


def _array(name: str, get: Callable[[str], Any], place: str) -> FloatArray | None:
    """Returns an array of a row. Raises `SceneError` for one of another shape, or of no numbers."""
    value = get(name)
    if value is None:
        return None
    width = ARRAYS[name] if name in ARRAYS else OF_CAMERAS[name.rpartition(".")[2]]
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise SceneError(f"{place}: {name}: {error}; give an array of numbers") from error
    if width and (array.ndim != 2 or array.shape[1] != width) and array.size:
        raise SceneError(f"{place}: {name}: shape {array.shape} where (n, {width}) belongs; map another column")
    return array.reshape(-1, width) if width else array


def _sensor(kind: type[Any], name: str, get: Callable[[str], Any], place: str) -> Any:
    points, extrinsic = _array(name, get, place), _array(f"{name}.extrinsic", get, place)
    if points is None:
        return None
    return kind(points.astype(np.float32), np.eye(4) if extrinsic is None else extrinsic)


def _boxes(name: str, get: Callable[[str], Any], place: str) -> Boxes | None:
    values = _array(name, get, place)
    if values is None:
        return None
    labels = tuple(str(label) for label in _listed(get(f"{name}.labels"), f"{name}.labels", place))
    if name == "perception":
        return Boxes(values, labels, scores=_array("perception.scores", get, place))
    ids, points = (_whole(part, get, place) for part in ("boxes.track_ids", "boxes.points"))
    return Boxes(values, labels, ids, points=points)


def _whole(name: str, get: Callable[[str], Any], place: str) -> npt.NDArray[np.int64] | None:
    """Returns whole numbers of a row, which floating point would round beyond 2^53. Raises `SceneError` for others."""
    numbers = _array(name, get, place)
    if numbers is None:
        return None
    if not (np.isfinite(numbers) & (np.round(numbers) == numbers)).all():
        raise SceneError(f"{place}: {name}: holds what is no whole number; map a column of whole numbers, or none")
    try:
        return np.array([int(number) for number in np.asarray(get(name)).reshape(-1).tolist()], dtype=np.int64)
    except OverflowError as error:
        raise SceneError(f"{place}: {name}: {error}; give numbers of 64 bits") from error


def _listed(value: Any, name: str, place: str) -> list[Any]:
    """Returns a list of a row, which may be written as JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise SceneError(f"{place}: {name}: {error}; give a list") from error
    if value is None:
        return []
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, Sequence):
        raise SceneError(f"{place}: {name}: is a {type(value).__name__}; give a list")
    return list(value)


def _question(value: Any, place: str) -> Question:
    pair = [value.get("question"), value.get("answer")] if isinstance(value, Mapping) else value
    if not isinstance(pair, Sequence) or len(pair) not in (2, 3) or not all(isinstance(each, str) for each in pair):
        raise SceneError(f"{place}: questions: {value!r}: give pairs of question and answer")
    question, answer, *topic = map(str, pair)
    return Question(question, answer, topic[0] if topic else "other")
