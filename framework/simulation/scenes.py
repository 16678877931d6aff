"""Scenes as one batch of tensors, prepared for simulation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
import torch
from torch import Tensor

from framework.scene.check import simulation_problems
from framework.scene.drivable import ROAD_TOLERANCE_M, drivable_surface
from framework.scene.frames import wrap_angle
from framework.scene.types import FloatArray, Scene, SceneError, road_users

Array = npt.NDArray[Any]

VEHICLES = frozenset({"car", "truck", "bus", "trailer", "construction_vehicle", "motorcycle"})
WALKERS = frozenset({"pedestrian", "bicycle", "animal"})
MIN_CURVATURE_DISTANCE_M = 0.1
"""A period that covers less than this has the curvature 0."""
PARKED_M = 2.0
"""A vehicle that covers no more than this in its log is parked; its motion is annotation noise."""


@dataclass(frozen=True, slots=True)
class SceneBatch:
    """`b` scenes with up to `n` agents over `t` periods, each scene in its own ego frame at the current time."""

    ids: tuple[str, ...]
    """The scenes' ids."""
    kinds: tuple[str, ...]
    """The scenario kinds."""
    rate_hz: float
    """Periods per second."""
    initial: Tensor
    """`(b, 4)`: the ego's current state."""
    curvature: Tensor
    """`(b,)` (1/m): the curvature that the ego drove last."""
    expert: Tensor
    """`(b, t, 4)`: the expert's future states."""
    logs: Tensor
    """`(b, n, t + 1, 3)`: x, y, heading of the agents from the current time on; gaps are interpolated."""
    stations: Tensor
    """`(b, n, t + 1)` (m): the distance that each agent has covered along its own log."""
    present: Tensor
    """`(b, n, t + 1)` bool: when the agents are there."""
    sizes: Tensor
    """`(b, n, 2)` (m): length, width."""
    driven: Tensor
    """`(b, n)` bool: vehicles that move in their logs."""
    walking: Tensor
    """`(b, n)` bool: pedestrians, cyclists and animals."""
    alive: Tensor
    """`(b, n)` bool: road users of any kind, as opposed to objects."""
    surface: Tensor
    """`(b, e, 4)`: the boundary of the drivable surface as edges (x, y, x, y); see `geometry.inside`."""
    mapped: Tensor
    """`(b,)` bool: whether the scene has a drivable surface."""
    route: Tensor
    """`(b, p, 2)`: the polyline to follow; the expert's own path where no route is known."""
    speed_limit: Tensor
    """`(b,)` (m/s), infinite where unknown."""
    red_lights: Tensor
    """`(b, r, 6)`: the ends x, y, x, y of a stop line (m), and the interval (s from now) in which it may not be
    crossed; NaN pads.
    """

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def steps(self) -> int:
        """The number of periods in the logs."""
        return self.logs.shape[2] - 1

    @property
    def dt(self) -> float:
        """The length of a period (s)."""
        return 1.0 / self.rate_hz

    def take(self, rows: Sequence[int]) -> SceneBatch:
        """The scenes `rows`, in that order; rows may repeat."""
        index = torch.tensor(rows, dtype=torch.int64, device=self.initial.device)
        ids, kinds = tuple(self.ids[row] for row in rows), tuple(self.kinds[row] for row in rows)
        return replace(self, ids=ids, kinds=kinds, **{name: tensor[index] for name, tensor in self._tensors().items()})

    def to(self, device: torch.device | str) -> SceneBatch:
        """A copy on `device`."""
        return replace(self, **{name: tensor.to(device) for name, tensor in self._tensors().items()})

    def _tensors(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def batch_scenes(scenes: Sequence[Scene], dtype: torch.dtype = torch.float32) -> SceneBatch:
    """Batch `scenes` on the CPU, with floating-point tensors of `dtype`.

    Agents, edges and vertices are padded to the most of any scene. The same object given several times is prepared
    once. Raises `SceneError`, naming scene and field, where history, future, boxes or surroundings are missing or where
    futures differ in rate or length.
    """
    if not scenes:
        raise SceneError("no scenes to simulate: give at least one")
    distinct = {id(scene): scene for scene in scenes}
    rows = {key: row for row, key in enumerate(distinct)}
    prepared = [_prepare(scene) for scene in distinct.values()]
    _require_alike(list(distinct.values()))
    pad = {name: [one[name] for one in prepared] for name in prepared[0]}
    first = next(iter(distinct.values())).future
    assert first is not None

    def floats(name: str, fill: float = 0.0) -> Tensor:
        return torch.from_numpy(_stack(pad[name], fill)).to(dtype)

    def bools(name: str) -> Tensor:
        return torch.from_numpy(_stack(pad[name], 0.0)).to(torch.bool)

    batch = SceneBatch(
        ids=tuple(scene.id for scene in distinct.values()),
        kinds=tuple(scene.kind for scene in distinct.values()),
        rate_hz=first.rate_hz,
        initial=floats("initial"),
        curvature=floats("curvature"),
        expert=floats("expert"),
        logs=floats("logs"),
        stations=floats("stations"),
        present=bools("present"),
        sizes=floats("sizes"),
        driven=bools("driven"),
        walking=bools("walking"),
        alive=bools("alive"),
        surface=floats("surface"),
        mapped=bools("mapped"),
        route=_lines(pad["route"]).to(dtype),
        speed_limit=floats("speed_limit"),
        red_lights=floats("red_lights", np.nan),
    )
    return batch if len(distinct) == len(scenes) else batch.take([rows[id(scene)] for scene in scenes])


def _prepare(scene: Scene) -> dict[str, Array]:
    """The arrays of one scene, by field of `SceneBatch`."""
    for name in ("history", "future", "boxes", "surroundings"):
        if getattr(scene, name) is None:
            raise SceneError(f"scene {scene.id}: field `{name}` is missing; it cannot be simulated, leave it out")
    if problems := simulation_problems(scene):
        raise SceneError(f"scene {scene.id}: it cannot be simulated: {'; '.join(problems)}")
    assert scene.history is not None
    assert scene.future is not None
    assert scene.boxes is not None
    assert scene.surroundings is not None
    around, (boxes, agents) = scene.surroundings, road_users(scene)
    labels = boxes.labels
    logs, present = _logs(np.concatenate([boxes.values[:, None, [0, 1, 6]], agents], axis=1))
    distance = np.hypot(*np.moveaxis(logs[:, -1, :2] - logs[:, 0, :2], -1, 0))
    stretches = np.linalg.norm(np.diff(logs[..., :2], axis=1), axis=-1)
    expert = np.asarray(scene.future.states, dtype=np.float64)
    surface = _surface(around.drivable)
    path = np.concatenate([np.zeros((1, 2)), expert[:, :2]])
    limit = np.inf if around.speed_limit is None else around.speed_limit
    return {
        "initial": np.array([0.0, 0.0, 0.0, scene.history.states[-1, 3]]),
        "curvature": _last_curvature(scene.history.states),
        "expert": expert,
        "logs": logs,
        "stations": np.pad(stretches.cumsum(axis=1), ((0, 0), (1, 0))),
        "present": present,
        "sizes": boxes.values[:, 3:5],
        "driven": np.array([label in VEHICLES for label in labels], dtype=bool) & (distance > PARKED_M),
        "walking": np.array([label in WALKERS for label in labels], dtype=bool),
        "alive": np.array([label in VEHICLES | WALKERS for label in labels], dtype=bool),
        "surface": surface,
        "mapped": np.array(len(surface) > 0),
        "route": path if around.route is None or not np.diff(around.route, axis=0).any() else around.route,
        "speed_limit": np.array(limit),
        "red_lights": np.zeros((0, 6)) if around.red_lights is None else around.red_lights,
    }


def _last_curvature(history: FloatArray) -> FloatArray:
    """Curvature `()` (1/m) of the last period of a history `(t, 4)`; 0 where the ego hardly moved."""
    before, now = history[-2:][0], history[-1]
    distance = float(np.hypot(*(now[:2] - before[:2])))
    return np.asarray(wrap_angle(now[2] - before[2]) / distance if distance > MIN_CURVATURE_DISTANCE_M else 0.0)


def _require_alike(scenes: Sequence[Scene]) -> None:
    """Raise `SceneError` unless all futures have the first one's length and rate."""
    spans = [(len(scene.future.states), scene.future.rate_hz) for scene in scenes if scene.future is not None]
    for scene, (steps, rate) in zip(scenes, spans, strict=True):
        if (steps, rate) != spans[0]:
            raise SceneError(
                f"scene {scene.id}: field `future` has {steps} states at {rate:g} Hz, scene {scenes[0].id} "
                f"{spans[0][0]} at {spans[0][1]:g} Hz; simulate scenes of one length and rate together"
            )


def _logs(poses: FloatArray) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """Logs `(n, t, 3)` with gaps (NaN) interpolated, and the mask `(n, t)` of the logged poses."""
    present = np.asarray(np.isfinite(poses).all(axis=-1))
    logs = np.array(poses, dtype=np.float64)
    times = np.arange(poses.shape[1])
    logs[~present.any(axis=1)] = 0.0  # who is nowhere
    for log, known in zip(logs, present, strict=True):
        if known.any() and not known.all():
            log[:, 2] = np.interp(times, times[known], np.unwrap(log[known, 2]))
            for axis in (0, 1):
                log[:, axis] = np.interp(times, times[known], log[known, axis])
    return logs, present


def _surface(drivable: Sequence[FloatArray]) -> FloatArray:
    """The boundary `(e, 4)` of the union of polygons `(k, 2)`, grown by `ROAD_TOLERANCE_M`: disjoint rings."""
    if not drivable:
        return np.zeros((0, 4))
    grown = shapely.get_parts(shapely.buffer(drivable_surface(drivable), ROAD_TOLERANCE_M, join_style="mitre"))
    rings = [shapely.get_coordinates(ring) for part in grown for ring in (part.exterior, *part.interiors)]
    return np.concatenate([np.zeros((0, 4)), *(np.concatenate([ring[:-1], ring[1:]], axis=1) for ring in rings)])


def _stack(arrays: Sequence[Array], fill: float) -> FloatArray:
    """Stack arrays, each padded at the end to the largest shape and to at least one along every axis."""
    shape = np.max([array.shape for array in arrays], axis=0, initial=1) if arrays[0].ndim else ()
    stacked = np.full((len(arrays), *shape), fill)
    for row, array in enumerate(arrays):
        index: tuple[Any, ...] = tuple(slice(size) for size in array.shape)
        stacked[(row, *index)] = array
    return stacked


def _lines(lines: Sequence[FloatArray]) -> Tensor:
    """Stack polylines `(k, 2)` to `(b, p, 2)`, padded by their last vertex."""
    longest = max(map(len, lines))
    padded = [np.concatenate([line, np.repeat(line[-1:], longest - len(line), axis=0)]) for line in lines]
    return torch.from_numpy(np.stack(padded).astype(np.float64))
