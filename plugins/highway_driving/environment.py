"""highway-env (Leurent 2018, https://github.com/Farama-Foundation/HighwayEnv) as an `Environment`: its roads, traffic
and vehicle, with the built-in simulator's measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import gymnasium
import highway_env  # noqa: F401 - registers its environments
import numpy as np
import torch
from annotated_types import Interval
from highway_env.road.lane import StraightLane
from torch import Tensor

from framework.recipe.component import component
from framework.recipe.ranges import Rate, Seconds
from framework.scene.types import Boxes, FloatArray, Scene, SceneError, Surroundings, Trajectory
from framework.simulation.scenes import SceneBatch
from framework.simulation.simulator import Moment, Simulator
from framework.simulation.traffic import Agents

LENGTH_M, WIDTH_M, HEIGHT_M = 5.0, 2.0, 1.5
"""The size of highway-env's vehicles; the height, which it does not model, is an assumption."""
PAST_PERIODS = 6
"""The length of the history."""
SPACING_M = 2.0
"""The distance between the sampled points of curved lanes."""


@component
class HighwayDriving:
    """An environment of highway-env; only scenes made by its `scenes(seeds)` can be driven in it.

    The scenes' expert keeps its lane and speed, and the route is that lane. The frame is the ego's at the current time,
    x forward, y left, with the body's centre as origin, the reference point of highway-env's bicycle model. A curvature
    becomes the front-wheel angle of that model.

    Args:
        name: the id of highway-env's environment.
        seconds: the longest drive (s).
        rate_hz: periods per second.
        vehicles: the number of vehicles other than the ego.
    """

    def __init__(
        self,
        name: str = "highway-fast-v0",
        seconds: Seconds = 5.0,
        rate_hz: Rate = 4.0,
        vehicles: Annotated[int, Interval(ge=0, le=1000)] = 15,
    ) -> None:
        self.name = name
        self.steps = round(seconds * rate_hz)
        self.rate_hz = rate_hz
        self.settings = {
            "action": {"type": "ContinuousAction"},
            "vehicles_count": vehicles,
            "policy_frequency": rate_hz,
            "simulation_frequency": 5 * rate_hz,
            "duration": 1000,
        }
        self._roads: dict[str, _Road] = {}
        self._traffic = _ObservedTraffic()
        self._simulator = Simulator(
            self._traffic, vehicle_length=LENGTH_M, vehicle_width=WIDTH_M, vehicle_rear_overhang=LENGTH_M / 2
        )

    def scenes(self, seeds: Sequence[int]) -> list[Scene]:
        """One scene per seed; the same seed gives the same scene."""
        made = []
        for seed in seeds:
            road = _Road(gymnasium.make(self.name, config=self.settings, disable_env_checker=True).unwrapped, seed)
            scene = road.scene(f"{self.name}-{seed}", self.name, self.steps, self.rate_hz)
            self._roads[scene.id] = road
            made.append(scene)
        return made

    def start(self, scenes: SceneBatch) -> Moment:
        """See `Environment`. Raises `SceneError` for scenes that `scenes` did not make, and for a scene given twice:
        its road is stateful.
        """
        for name in scenes.ids:
            if name not in self._roads:
                raise SceneError(f"scene {name}: HighwayDriving did not make it; give scenes of its method `scenes`")
            if scenes.ids.count(name) > 1:
                raise SceneError(f"scene {name}: several times in one batch; its road can be driven once at a time")
            self._roads[name].reset()
        return self._simulator.start(scenes)

    def step(self, scenes: SceneBatch, moment: Moment, controls: Tensor) -> Moment:
        """See `Environment`. Raises `SceneError` where a road has moved on from `moment`: it cannot go back."""
        roads = [self._roads[name] for name in scenes.ids]
        for name, road in zip(scenes.ids, roads, strict=True):
            if road.period != moment.step:
                raise SceneError(f"scene {name}: its road is at period {road.period}, not {moment.step}; start again")
        for road, (acceleration, curvature) in zip(roads, controls.tolist(), strict=True):
            road.step(acceleration, curvature)
        like = scenes.initial
        self._traffic.observed = _agents([road.others() for road in roads], moment.agents)
        ego = torch.tensor(np.array([road.ego() for road in roads])).to(like)
        return self._simulator.place(scenes, moment, ego, controls[:, 1])


class _ObservedTraffic:
    """Traffic that highway-env has already advanced: returns the agents `observed` last."""

    observed: Agents

    def advance(self, scenes: SceneBatch, agents: Agents, step: int, ego: Tensor, ego_speed: Tensor) -> Agents:
        """See `Traffic`."""
        return self.observed


def _agents(rows: list[FloatArray], before: Agents) -> Agents:
    """Agents from each road's rows `(n, 5)` (x, y, heading, speed, present), padded to the shape of `before`."""
    table = np.zeros((*before.present.shape, 5))
    for place, row in zip(table, rows, strict=True):
        place[: len(row)] = row
    x, y, heading, speed, present = torch.from_numpy(table).to(before.poses).unbind(dim=-1)
    velocities = speed[..., None] * torch.stack([heading.cos(), heading.sin()], dim=-1)
    return Agents(torch.stack([x, y, heading], dim=-1), velocities, before.stations, present > 0)


class _Road:
    """One of highway-env's environments, and the ego's frame at its start."""

    def __init__(self, env: Any, seed: int) -> None:
        self.env, self.seed = env, seed
        self.reset()

    def reset(self) -> None:
        """Return to the start."""
        self.env.reset(seed=self.seed)
        self.period = 0
        ego = self.env.vehicle
        ego.collidable = (
            False  # the simulator judges collisions; highway-env would push the bodies apart before they meet
        )
        self.origin, self.turn = ego.position.copy(), float(ego.heading)
        self.agents = [vehicle for vehicle in self.env.road.vehicles if vehicle is not ego]

    def step(self, acceleration: float, curvature: float) -> None:
        """Advance one period. highway-env's y points right, so its angles run clockwise."""
        self.period += 1
        slip = np.arcsin(np.clip(-curvature * LENGTH_M / 2, -0.7, 0.7))
        ranges = self.env.action_type.acceleration_range[1], self.env.action_type.steering_range[1]
        self.env.step(np.array([acceleration, np.arctan(2 * np.tan(slip))]) / ranges)

    def ego(self) -> FloatArray:
        """x, y, heading, speed `(4,)`."""
        return self._state(self.env.vehicle)

    def others(self) -> FloatArray:
        """x, y, heading, speed, present `(n, 5)` of the vehicles that were there at the start."""
        present = set(map(id, self.env.road.vehicles))
        rows = [[*self._state(vehicle), float(id(vehicle) in present)] for vehicle in self.agents]
        return np.array(rows).reshape(-1, 5)

    def scene(self, name: str, kind: str, steps: int, rate_hz: float) -> Scene:
        """The start as a scene."""
        x, y, heading, speed, _ = self.others().T
        shape = np.broadcast_to([LENGTH_M, WIDTH_M, HEIGHT_M], (len(x), 3))
        velocity = speed * np.stack([np.cos(heading), np.sin(heading)])
        boxes = np.column_stack([x, y, np.full_like(x, HEIGHT_M / 2), shape, heading, *velocity])
        ego, lane = self.env.vehicle, self.env.vehicle.lane
        times = np.arange(-PAST_PERIODS, steps + 1) / rate_hz
        way = lane.local_coordinates(ego.position)[0] + ego.speed * times
        states = np.column_stack([self._line(lane, way), np.zeros((len(times), 2))])
        states[:, 2] = [-(lane.heading_at(station) - self.turn) for station in way]
        states[:, 3] = ego.speed
        states[PAST_PERIODS] = 0.0, 0.0, 0.0, ego.speed
        network = self.env.road.network
        return Scene(
            id=name,
            kind=kind,
            boxes=Boxes(boxes, ("car",) * len(boxes)),
            history=Trajectory(states[: PAST_PERIODS + 1], rate_hz),
            future=Trajectory(states[PAST_PERIODS + 1 :], rate_hz),
            surroundings=Surroundings(
                agents=np.full((len(boxes), steps, 3), np.nan),
                drivable=tuple(self._ring(lane) for lane in network.lanes_list()),
                route=self._line(lane, _stations(lane)),
                speed_limit=lane.speed_limit,
            ),
            provenance={"dataset": "highway-env", "seed": str(self.seed)},
        )

    def _ring(self, lane: Any) -> FloatArray:
        stations = _stations(lane)
        width = np.array([lane.width_at(station) / 2 for station in stations])
        return np.concatenate([self._line(lane, stations, -width), self._line(lane, stations, width)[::-1]])

    def _line(self, lane: Any, stations: FloatArray, offsets: FloatArray | None = None) -> FloatArray:
        lateral = np.zeros_like(stations) if offsets is None else offsets
        return self._to_ego(np.array([lane.position(*place) for place in zip(stations, lateral, strict=True)]))

    def _state(self, vehicle: Any) -> FloatArray:
        x, y = self._to_ego(vehicle.position[None])[0]
        return np.array([x, y, -(vehicle.heading - self.turn), vehicle.speed])

    def _to_ego(self, points: FloatArray) -> FloatArray:
        """Points `(k, 2)` of the road in the ego frame."""
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        moved: FloatArray = (points - self.origin) @ np.array([[cos, sin], [sin, -cos]])
        return moved


def _stations(lane: Any) -> FloatArray:
    """The stations (m) at which a lane is sampled: the ends of a straight one."""
    count = 2 if isinstance(lane, StraightLane) else max(2, round(lane.length / SPACING_M))
    return np.linspace(0.0, lane.length, count)
