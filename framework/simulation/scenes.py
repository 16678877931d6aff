"""Scenes as tensors: what a simulator needs of a whole batch of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
import torch
from torch import Tensor

from framework.scene.drivable import ROAD_TOLERANCE_M, drivable_surface
from framework.scene.frames import wrap_angle
from framework.scene.types import FloatArray, Scene, SceneError

Array = npt.NDArray[Any]

VEHICLES = frozenset({"car", "truck", "bus", "trailer", "construction_vehicle", "motorcycle"})
WALKERS = frozenset({"pedestrian", "bicycle", "animal"})
STANDING_M = 0.1
"""A period over less than this has no curvature worth the name."""
LEAST_WAY_M = 2.0
"""A vehicle that gets less far than this in its log is parked, and what moves it is the noise of its annotation."""


@dataclass(frozen=True, slots=True)
class SceneBatch:
    """`b` scenes with up to `n` agents over `t` periods of 1 / `rate_hz` seconds, in each scene's own ego frame at the
    current time.

    `ids`, `kinds`: the scenes' names and scenario kinds. `initial` `(b, 4)`: the ego's current state, and `curvature`
    `(b,)` (1/m) what it drove last; `expert` `(b, t, 4)`: what the expert does next. `logs` `(b, n, t + 1, 3)`: x, y,
    heading of the agents from the current time on, and `present` `(b, n, t + 1)` when they are there (where not, the
    log is bridged); `stations` `(b, n, t + 1)`: how far (m) each has come along its own polyline. `sizes` `(b, n, 2)`:
    length, width (m). `driven`, `walking` `(b, n)` bool: vehicles that move in their logs; pedestrians, cyclists and
    animals. `alive` `(b, n)` bool: road users of any kind, not things.

    `surface` `(b, e, 4)`: the boundary of the drivable surface as edges (x, y, x, y), see `geometry.inside`; `mapped`
    `(b,)` bool where there is one. `route` `(b, p, 2)`: the line to follow, the expert's own where none is known.
    `speed_limit` `(b,)` (m/s), infinite where unknown. `red_lights` `(b, r, 6)`: see `Surroundings.red_lights`, NaN
    beyond a scene's own.
    """

    ids: tuple[str, ...]
    kinds: tuple[str, ...]
    rate_hz: float
    initial: Tensor
    curvature: Tensor
    expert: Tensor
    logs: Tensor
    stations: Tensor
    present: Tensor
    sizes: Tensor
    driven: Tensor
    walking: Tensor
    alive: Tensor
    surface: Tensor
    mapped: Tensor
    route: Tensor
    speed_limit: Tensor
    red_lights: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def steps(self) -> int:
        """Periods that the logs cover."""
        return self.logs.shape[2] - 1

    @property
    def dt(self) -> float:
        """Seconds from one state to the next."""
        return 1.0 / self.rate_hz

    def take(self, rows: Sequence[int]) -> SceneBatch:
        """The scenes `rows`, in that order; a row may be taken several times."""
        index = torch.tensor(rows, dtype=torch.int64, device=self.initial.device)
        ids, kinds = tuple(self.ids[row] for row in rows), tuple(self.kinds[row] for row in rows)
        return replace(self, ids=ids, kinds=kinds, **{name: tensor[index] for name, tensor in self._tensors().items()})

    def to(self, device: torch.device | str) -> SceneBatch:
        """The same on another device."""
        return replace(self, **{name: tensor.to(device) for name, tensor in self._tensors().items()})

    def _tensors(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def batch_scenes(scenes: Sequence[Scene], dtype: torch.dtype = torch.float32) -> SceneBatch:
    """`scenes` as one batch on the CPU; floating-point tensors are of `dtype`.

    Whatever has fewer agents, edges or vertices than others is padded. Scenes that come several times (the same object)
    are prepared once. Raises `SceneError` naming the scene and the field where one lacks history, future, boxes or
    surroundings, or where rates or lengths of the futures differ.
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

    def real(name: str, fill: float = 0.0) -> Tensor:
        return torch.from_numpy(_stack(pad[name], fill)).to(dtype)

    def yes(name: str) -> Tensor:
        return torch.from_numpy(_stack(pad[name], 0.0)).to(torch.bool)

    batch = SceneBatch(
        ids=tuple(scene.id for scene in distinct.values()),
        kinds=tuple(scene.kind for scene in distinct.values()),
        rate_hz=first.rate_hz,
        initial=real("initial"),
        curvature=real("curvature"),
        expert=real("expert"),
        logs=real("logs"),
        stations=real("stations"),
        present=yes("present"),
        sizes=real("sizes"),
        driven=yes("driven"),
        walking=yes("walking"),
        alive=yes("alive"),
        surface=real("surface"),
        mapped=yes("mapped"),
        route=_lines(pad["route"]).to(dtype),
        speed_limit=real("speed_limit"),
        red_lights=real("red_lights", np.nan),
    )
    return batch if len(distinct) == len(scenes) else batch.take([rows[id(scene)] for scene in scenes])


def _prepare(scene: Scene) -> dict[str, Array]:
    """The arrays of one scene under the names of `SceneBatch`."""
    for name in ("history", "future", "boxes", "surroundings"):
        if getattr(scene, name) is None:
            raise SceneError(f"scene {scene.id}: field `{name}` is missing; it cannot be simulated, leave it out")
    assert scene.history is not None
    assert scene.future is not None
    assert scene.boxes is not None
    assert scene.surroundings is not None
    around, labels = scene.surroundings, scene.boxes.labels
    logs, present = _logs(np.concatenate([scene.boxes.values[:, None, [0, 1, 6]], around.agents], axis=1))
    way = np.hypot(*np.moveaxis(logs[:, -1, :2] - logs[:, 0, :2], -1, 0))
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
        "sizes": scene.boxes.values[:, 3:5],
        "driven": np.array([label in VEHICLES for label in labels], dtype=bool) & (way > LEAST_WAY_M),
        "walking": np.array([label in WALKERS for label in labels], dtype=bool),
        "alive": np.array([label in VEHICLES | WALKERS for label in labels], dtype=bool),
        "surface": surface,
        "mapped": np.array(len(surface) > 0),
        "route": path if around.route is None or len(around.route) < 2 else around.route,
        "speed_limit": np.array(limit),
        "red_lights": np.zeros((0, 6)) if around.red_lights is None else around.red_lights,
    }


def _last_curvature(history: FloatArray) -> FloatArray:
    """Curvature `()` (1/m) of the last period of a history `(t, 4)`; 0 where that hardly moved."""
    before, now = history[-2:][0], history[-1]
    way = float(np.hypot(*(now[:2] - before[:2])))
    return np.asarray(wrap_angle(now[2] - before[2]) / way if way > STANDING_M else 0.0)


def _require_alike(scenes: Sequence[Scene]) -> None:
    """One clock for all: the first scene's."""
    spans = [(len(scene.future.states), scene.future.rate_hz) for scene in scenes if scene.future is not None]
    for scene, (steps, rate) in zip(scenes, spans, strict=True):
        if (steps, rate) != spans[0]:
            raise SceneError(
                f"scene {scene.id}: field `future` has {steps} states at {rate:g} Hz, scene {scenes[0].id} "
                f"{spans[0][0]} at {spans[0][1]:g} Hz; simulate scenes of one length and rate together"
            )


def _logs(poses: FloatArray) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """Logs `(n, t, 3)` whose gaps (NaN) are bridged, and where they had none `(n, t)`."""
    present = np.asarray(np.isfinite(poses).all(axis=-1))
    logs = np.array(poses, dtype=np.float64)
    times = np.arange(poses.shape[1])
    for log, known in zip(logs, present, strict=True):
        if not known.all():
            log[:, 2] = np.interp(times, times[known], np.unwrap(log[known, 2]))
            for axis in (0, 1):
                log[:, axis] = np.interp(times, times[known], log[known, axis])
    return logs, present


def _surface(drivable: Sequence[FloatArray]) -> FloatArray:
    """The edges `(e, 4)` of the union of polygons `(k, 2)`, grown by `ROAD_TOLERANCE_M`: rings that do not overlap."""
    if not drivable:
        return np.zeros((0, 4))
    grown = shapely.get_parts(shapely.buffer(drivable_surface(drivable), ROAD_TOLERANCE_M, join_style="mitre"))
    rings = [shapely.get_coordinates(ring) for part in grown for ring in (part.exterior, *part.interiors)]
    return np.concatenate([np.zeros((0, 4)), *(np.concatenate([ring[:-1], ring[1:]], axis=1) for ring in rings)])


def _stack(arrays: Sequence[Array], fill: float) -> FloatArray:
    """One array of all, each padded at the ends to the largest shape, and at least to one along every axis."""
    shape = np.max([array.shape for array in arrays], axis=0, initial=1) if arrays[0].ndim else ()
    stacked = np.full((len(arrays), *shape), fill)
    for row, array in enumerate(arrays):
        begin: tuple[Any, ...] = tuple(slice(size) for size in array.shape)
        stacked[(row, *begin)] = array
    return stacked


def _lines(lines: Sequence[FloatArray]) -> Tensor:
    """Polylines `(k, 2)` as one tensor `(b, p, 2)`; the last vertex is repeated."""
    longest = max(map(len, lines))
    padded = [np.concatenate([line, np.repeat(line[-1:], longest - len(line), axis=0)]) for line in lines]
    return torch.from_numpy(np.stack(padded).astype(np.float64))
