"""The kinds of scenario of the built-in world: each is a function that lays out a road, its users and the expert's
plan from a seed.

A scenario begins `WARM_UP` seconds before the current time, so that what decides the expert's future already shows
in its history.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from framework.scene.world.actors import SIZES, Actor
from framework.scene.world.driver import Detour, Plan
from framework.scene.world.road import Layout, Path, curved_road, intersection, straight_road

WARM_UP = 3.0
TRAIN_KINDS = (
    "straight",
    "curve",
    "intersection",
    "lead_braking",
    "cut_in",
    "crossing_pedestrian",
    "blocked_lane",
)
HELD_OUT_KINDS = ("flagger", "rare_object")
"""Kinds that training never sees: they measure transfer to what is new."""
KINDS = TRAIN_KINDS + HELD_OUT_KINDS


@dataclass(frozen=True, slots=True)
class Scenario:
    """A scenario at its beginning: the ego at `station` of the plan's route with `speed`, and everybody else."""

    layout: Layout
    plan: Plan
    actors: list[Actor]
    station: float
    speed: float
    command: str = "follow"


def build_scenario(kind: str, rng: np.random.Generator) -> Scenario:
    """A scenario of `kind` (one of `KINDS`)."""
    return _BUILDERS[kind](rng)


def _straight(rng: np.random.Generator) -> Scenario:
    layout = straight_road(rng)
    return _cruise(rng, layout)


def _curve(rng: np.random.Generator) -> Scenario:
    layout = curved_road(rng)
    return _cruise(rng, layout)


def _cruise(rng: np.random.Generator, layout: Layout) -> Scenario:
    """Plain driving with, half the time, somebody ahead who drives a little slower than the limit."""
    speed = _entry_speed(rng, layout, 0.45)
    actors = _surrounding_traffic(rng, layout, speed)
    if rng.random() < 0.5:
        pace = speed * rng.uniform(0.65, 1.35)
        actors.append(_lead(rng, layout, speed, float(pace), extra=(4.0, 30.0)))
    return Scenario(layout, _plan(layout), actors, layout.start, speed)


def _lead_braking(rng: np.random.Generator) -> Scenario:
    layout = straight_road(rng) if rng.random() < 0.75 else curved_road(rng)
    speed = _entry_speed(rng, layout, 0.6)
    lead = _lead(rng, layout, speed, speed, extra=(2.0, 14.0))
    lead.brakes = (float(rng.uniform(-2.4, -0.4)), float(rng.uniform(1.5, 3.2)))
    return Scenario(layout, _plan(layout), [lead, *_surrounding_traffic(rng, layout, speed)], layout.start, speed)


def _cut_in(rng: np.random.Generator) -> Scenario:
    layout = straight_road(rng, lanes=2)
    speed = _entry_speed(rng, layout, 0.7)
    assert layout.neighbour is not None
    pace = speed * rng.uniform(0.45, 0.8)
    ahead = 3.0 * (speed - pace) + rng.uniform(9.0, 20.0)
    intruder = Actor(
        _vehicle(rng),
        layout.route,
        layout.start + float(ahead),
        offset=layout.neighbour_side * layout.lane_width,
        speed=float(pace),
        desired=float(pace),
        shifts=(
            float(rng.uniform(-2.2, -0.5)),
            float(rng.uniform(2.2, 3.5)),
            -layout.neighbour_side * layout.lane_width,
        ),
        follows=True,
    )
    actors = [intruder, *_oncoming_traffic(rng, layout, speed), *_roadside(rng, layout)]
    return Scenario(layout, _plan(layout), actors, layout.start, speed)


def _crossing_pedestrian(rng: np.random.Generator) -> Scenario:
    layout = straight_road(rng) if rng.random() < 0.75 else curved_road(rng)
    speed = _entry_speed(rng, layout, 0.5)
    place = layout.start + WARM_UP * speed + float(rng.uniform(10.0, 22.0)) + 1.1 * speed
    side = float(rng.choice([-1.0, 1.0]))
    walking = float(rng.uniform(0.9, 1.9))
    # Where along the crossing they are at the current time: from just off the road to within the ego's lane.
    now = float(rng.uniform(-1.5, 2.5)) + (layout.room[0] if side > 0 else layout.room[1]) - layout.lane_width / 2.0
    now = min(now, (layout.room[0] if side > 0 else layout.room[1]) + 1.0)
    actors = [_walker(layout, place, side * (now + WARM_UP * walking), -side * walking)]
    if rng.random() < 0.4:
        actors.append(_walker(layout, place + 1.0, side * (now + 0.9 + WARM_UP * walking), -side * walking))
    return Scenario(layout, _plan(layout), actors + _roadside(rng, layout), layout.start, speed)


def _blocked_lane(rng: np.random.Generator) -> Scenario:
    layout = straight_road(rng) if rng.random() < 0.8 else curved_road(rng)
    speed = min(_entry_speed(rng, layout, 0.5), 9.0)
    label = str(rng.choice(["truck", "truck", "bus", "construction_vehicle"]))
    length, width, _ = SIZES[label]
    aside = float(rng.uniform(-1.4, 0.3)) if layout.room[1] < 4.0 else float(rng.uniform(-0.8, 0.8))
    place = layout.start + WARM_UP * speed + float(rng.uniform(4.0, 26.0)) + length / 2.0
    actors = [Actor(label, layout.route, place, aside)]
    left_edge = aside + width / 2.0
    if rng.random() < 0.6:
        actors += [
            Actor("traffic_cone", layout.route, place - length / 2.0 - 2.0 - 3.0 * k, left_edge - 0.3 - 0.7 * k)
            for k in range(3)
        ]
    if rng.random() < 0.5:
        actors.append(
            Actor("hose", layout.route, place + length / 2.0 + 3.2, left_edge - 0.3, yaw=float(rng.uniform(-0.1, 0.1)))
        )
    detour = _pass_by(place - length / 2.0, place + length / 2.0, left_edge)
    plan = _plan(layout, detours=(detour,), slow=((detour.begin - 6.0, detour.end, 6.5),))
    return Scenario(layout, plan, actors + _roadside(rng, layout), layout.start, speed)


def _intersection(rng: np.random.Generator) -> Scenario:
    command = str(rng.choice(["left", "right", "straight"]))
    layout = intersection(rng, command)
    assert layout.stop_line is not None
    speed = float(rng.uniform(4.0, 9.5))
    station = layout.stop_line - WARM_UP * speed + float(rng.uniform(-16.0, 6.0)) * (1.0 if speed > 5.0 else 0.6)
    actors = []
    for lane in layout.crossing:
        if rng.random() < 0.45:
            pace = float(rng.uniform(6.0, 10.0))
            # They reach the middle between one second before and five after the current time.
            distance = pace * (WARM_UP + float(rng.uniform(-1.0, 5.0)))
            actors.append(_mover(_vehicle(rng), lane, lane.length / 2.0 - distance, pace, follows=False))
    if rng.random() < 0.5:
        pace = float(rng.uniform(5.0, 9.0))
        distance = pace * (WARM_UP + float(rng.uniform(-1.5, 5.0)))
        actors.append(
            _mover(_vehicle(rng), layout.oncoming, layout.oncoming.length / 2.0 - distance, pace, follows=False)
        )
    plan = Plan(layout.route, layout.speed_limit, stop_line=layout.stop_line)
    return Scenario(layout, plan, actors + _corner_people(rng, layout), station, speed, command)


def _flagger(rng: np.random.Generator) -> Scenario:
    layout = straight_road(rng)
    speed = _entry_speed(rng, layout, 0.5)
    halt = layout.start + WARM_UP * speed + 6.0 + float(rng.uniform(0.5, 1.6)) * speed
    side = float(rng.choice([-0.4, 0.4]))
    actors = [Actor("pedestrian", layout.route, halt + 2.5, side, yaw=np.pi)]
    actors += [Actor("traffic_cone", layout.route, halt + 4.0 + 3.0 * k, -1.4 + 0.8 * k) for k in range(4)]
    actors += [
        Actor("barrier", layout.route, halt + 17.0, 0.0),
        Actor("construction_vehicle", layout.route, halt + 23.0, 0.0, yaw=float(rng.uniform(-0.3, 0.3))),
    ]
    return Scenario(
        layout, _plan(layout, halt=halt), actors + _oncoming_traffic(rng, layout, speed), layout.start, speed
    )


def _rare_object(rng: np.random.Generator) -> Scenario:
    layout = straight_road(rng) if rng.random() < 0.7 else curved_road(rng)
    speed = _entry_speed(rng, layout, 0.5)
    place = layout.start + WARM_UP * speed + 8.0 + float(rng.uniform(0.6, 1.4)) * speed
    if rng.random() < 0.5:
        side, pace = float(rng.choice([-1.0, 1.0])), float(rng.uniform(0.4, 1.2))
        now = float(rng.uniform(0.0, 2.0))
        animal = _walker(layout, place, side * (now + WARM_UP * pace), -side * pace, label="animal")
        return Scenario(layout, _plan(layout), [animal, *_roadside(rng, layout)], layout.start, speed)
    aside = float(rng.uniform(-1.3, 0.2))
    debris = Actor("debris", layout.route, place, aside, yaw=float(rng.uniform(-1.0, 1.0)))
    detour = _pass_by(place - 0.6, place + 0.6, aside + 0.65)
    plan = _plan(layout, detours=(detour,), slow=((detour.begin - 6.0, detour.end, 7.0),))
    return Scenario(layout, plan, [debris, *_roadside(rng, layout)], layout.start, speed)


_BUILDERS: dict[str, Callable[[np.random.Generator], Scenario]] = {
    "straight": _straight,
    "curve": _curve,
    "intersection": _intersection,
    "lead_braking": _lead_braking,
    "cut_in": _cut_in,
    "crossing_pedestrian": _crossing_pedestrian,
    "blocked_lane": _blocked_lane,
    "flagger": _flagger,
    "rare_object": _rare_object,
}


def _plan(
    layout: Layout,
    *,
    detours: tuple[Detour, ...] = (),
    slow: tuple[tuple[float, float, float], ...] = (),
    halt: float | None = None,
) -> Plan:
    return Plan(layout.route, layout.speed_limit, detours, slow, layout.stop_line, halt)


def _pass_by(begin: float, end: float, left_edge: float) -> Detour:
    """The detour around something between two stations whose left edge is `left_edge` metres to the left of the
    route's centreline."""
    clearance = 0.95 + 0.75
    return Detour(begin - 6.0, end + 3.0, max(0.0, left_edge + clearance), ramp=18.0)


def _entry_speed(rng: np.random.Generator, layout: Layout, least: float) -> float:
    """A speed at the beginning, between the share `least` of the limit and the limit."""
    return float(rng.uniform(least, 1.0)) * layout.speed_limit


def _vehicle(rng: np.random.Generator) -> str:
    return str(rng.choice(["car", "truck", "bus", "motorcycle"], p=[0.75, 0.12, 0.06, 0.07]))


def _mover(label: str, path: Path, station: float, pace: float, *, follows: bool = True, watched: bool = True) -> Actor:
    return Actor(label, path, station, speed=pace, desired=pace, follows=follows, watched=watched)


def _lead(rng: np.random.Generator, layout: Layout, speed: float, pace: float, extra: tuple[float, float]) -> Actor:
    """Somebody ahead in the ego's lane at `pace`, at the gap that car-following keeps and `extra` (least, most)
    metres more."""
    label = _vehicle(rng)
    gap = 2.5 + 1.3 * speed + float(rng.uniform(*extra)) + WARM_UP * max(0.0, speed - pace) / 2.0
    return _mover(label, layout.route, layout.start + 3.6 + gap + SIZES[label][0] / 2.0, pace)


def _surrounding_traffic(rng: np.random.Generator, layout: Layout, speed: float) -> list[Actor]:
    """Others who keep to their own lanes, and the roadside."""
    actors = _oncoming_traffic(rng, layout, speed) + _roadside(rng, layout)
    if layout.neighbour is not None:
        station = layout.neighbour.project(layout.route.at(layout.start)[:2], layout.start)[0]
        for _ in range(int(rng.integers(0, 3))):
            station += float(rng.uniform(14.0, 30.0))
            pace = speed * float(rng.uniform(0.8, 1.1))
            actors.append(_mover(_vehicle(rng), layout.neighbour, station, pace, watched=False))
    return actors


def _oncoming_traffic(rng: np.random.Generator, layout: Layout, speed: float) -> list[Actor]:
    """Up to three who come towards the ego on their own side."""
    here = layout.route.at(layout.start + WARM_UP * speed)[:2]
    station = layout.oncoming.project(here, near=layout.oncoming.length / 2.0)[0] - WARM_UP * speed - 50.0
    actors = []
    for _ in range(int(rng.integers(0, 4))):
        actors.append(_mover(_vehicle(rng), layout.oncoming, station, speed * 0.9, watched=False))
        station += float(rng.uniform(14.0, 35.0))
    return actors


def _roadside(rng: np.random.Generator, layout: Layout) -> list[Actor]:
    """Parked cars and people beyond the drivable surface, whom nobody needs to react to."""
    actors = []
    for _ in range(int(rng.integers(0, 4))):
        side = float(rng.choice([-1.0, 1.0]))
        edge = layout.room[0] if side > 0 else layout.room[1]
        station = layout.start + float(rng.uniform(10.0, 80.0))
        if rng.random() < 0.5:
            actors.append(Actor("car", layout.route, station, side * (edge + 1.6), watched=False))
        else:
            pace = float(rng.uniform(0.0, 1.5)) * (1.0 if rng.random() < 0.7 else 0.0)
            label = "pedestrian" if rng.random() < 0.8 else "bicycle"
            where = side * (edge + float(rng.uniform(1.0, 4.0)))
            actors.append(Actor(label, layout.route, station, where, speed=pace, desired=pace, watched=False))
    return actors


def _corner_people(rng: np.random.Generator, layout: Layout) -> list[Actor]:
    """People who stand at the corners of a crossing."""
    reach = layout.room[1] + layout.lane_width / 2.0 + 6.0
    actors = []
    for sx, sy in ((1.0, -1.0), (-1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)):
        if rng.random() < 0.3:
            corner = np.array([sx, sy]) * (reach + rng.uniform(0.0, 2.0, size=2))
            there = Path(np.stack([corner, corner + np.array([4.0, 0.0])]))
            actors.append(Actor("pedestrian", there, 0.0, yaw=float(rng.uniform(-3.0, 3.0)), watched=False))
    return actors


def _walker(layout: Layout, place: float, offset: float, pace: float, *, label: str = "pedestrian") -> Actor:
    """Somebody who crosses the route at the station `place` from `offset` (m to its left) at `pace` (m/s, positive
    to the left)."""
    side = float(np.sign(pace))
    begin = layout.route.at(place, offset)[:2]
    heading = float(layout.route.at(place)[2])
    across = side * np.array([-np.sin(heading), np.cos(heading)])
    return _mover(label, Path(np.stack([begin, begin + 60.0 * across])), 0.0, abs(pace), follows=False)
