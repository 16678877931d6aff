"""One scene of the built-in world from a seed: simulate a scenario around the current time, then say and sense what
there is."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, replace

import numpy as np
import shapely

from framework.scene.frames import apply, footprints, invert, rigid, transform_boxes, wrap_angle, yaw_rotation
from framework.scene.kinematics import EGO, ego_footprints, unicycle_step
from framework.scene.types import (
    HORIZON_STEPS,
    RATE_HZ,
    Boxes,
    Camera,
    FloatArray,
    Scene,
    SceneError,
    Surroundings,
    Trajectory,
)
from framework.scene.world import language
from framework.scene.world.actors import Actor, advance_all
from framework.scene.world.camera import film_cameras, render_cameras
from framework.scene.world.driver import Expert
from framework.scene.world.lidar import points_in_boxes, scan_lidar
from framework.scene.world.perception import perceive
from framework.scene.world.radar import scan_radar
from framework.scene.world.rig import TINY_RIG, Rig
from framework.scene.world.scenarios import KINDS, TRAIN_KINDS, WARM_UP, Scenario, build_scenario
from framework.scene.world.state import Road, Snapshot

DT = 1.0 / RATE_HZ
PAST, FUTURE = 6, HORIZON_STEPS
"""Steps of history before the current state, and of the future."""
AHEAD, BEHIND, ASIDE, SEEN = 95.0, 40.0, 60.0, 50.0
"""The map's crop (m) around the ego, and the distance within which objects are annotated."""
SMOOTH = 0.03
"""How far (m) the map's curves may be from the road's: fewer corners make everything that reads the map faster."""
ATTEMPTS = 40
DATASET = "built-in world"
"""The provenance of the world's scenes."""


@dataclass(frozen=True, slots=True)
class Run:
    """A simulated scenario. `states` `(past + future + 1, 4)` of the ego in the world, `controls` its future ones;
    `poses` `(actors, past + future + 1, 3)` of everybody else and their `velocities` `(actors, 2)` now; `causes` say
    what each future acceleration is due to.
    """

    states: FloatArray
    controls: FloatArray
    poses: FloatArray
    velocities: FloatArray
    causes: tuple[str, ...]
    yaw_rate: float


def generate_scene(seed: int, kind: str | None = None, *, rig: Rig | None = TINY_RIG, camera_frames: int = 1) -> Scene:
    """The scene of `seed`: the same bits for the same arguments, everywhere.

    `kind` is one of `KINDS`; None draws one of `TRAIN_KINDS`. `rig` says which sensors look on; None leaves
    all of them, and perception, out. More than one of `camera_frames` make each camera's still a clip of the last so
    many moments, as they were simulated. Raises `SceneError` on a kind or a number of frames that there is not.
    """
    if kind is None:
        kind = str(stream(seed, "", "kind").choice(TRAIN_KINDS))
    if kind not in KINDS:
        raise SceneError(f"the built-in world has no kind {kind!r}: choose one of {', '.join(KINDS)}")
    if not 1 <= camera_frames <= PAST + 1:
        raise SceneError(f"the built-in world has no clips of {camera_frames} frames: choose 1 to {PAST + 1}")
    scenario, run = _simulate_soundly(seed, kind)
    snapshot, surroundings = _look_around(seed, kind, scenario, run)
    history, future = _trajectories(run)
    speed = snapshot.ego_speed
    did = language.manoeuvre(future, speed, scenario.command, _detour(scenario, run))
    why = language.cause(run.controls, run.causes, did)
    scene = Scene(
        id=f"world-{kind}-{seed}",
        kind=kind,
        boxes=snapshot.boxes,
        history=history,
        future=future,
        surroundings=surroundings,
        command=scenario.command,
        questions=language.ask(snapshot.boxes, surroundings, speed, did, why),
        caption=language.describe(snapshot.boxes, did, speed),
        thought=language.think(did, why),
        provenance={"dataset": DATASET, "seed": str(seed), "licence": "Apache-2.0"},
    )
    if rig is None:
        return scene
    scene = _sense(scene, snapshot, rig)
    if camera_frames == 1:
        return scene
    moments = _last_moments(run, snapshot.boxes, history, camera_frames)
    return replace(scene, cameras=film_cameras(snapshot.road, rig, moments, RATE_HZ))


@functools.lru_cache(maxsize=256)  # a recipe's stages often name the same scenes
def outline_scene(seed: int, kind: str, camera_frames: int = 1) -> Scene:
    """The scene of `generate_scene` without images: its cameras have sizes and times alone. Drawing the images takes a
    third of the time."""
    scene = generate_scene(seed, kind, rig=replace(TINY_RIG, cameras=()))
    times = np.arange(1 - camera_frames, 1) * DT
    cameras = (Camera(m.name, (), times, m.intrinsic, m.extrinsic, m.width, m.height) for m in TINY_RIG.cameras)
    return replace(scene, cameras=tuple(cameras))


def _last_moments(run: Run, boxes: Boxes, history: Trajectory, count: int) -> list[tuple[Boxes, FloatArray]]:
    """Where `boxes` and the ego were in the last `count` steps, now included: boxes and poses `(4, 4)` in the ego's
    present frame.
    """
    assert boxes.track_ids is not None
    poses = _as_seen(run.poses[boxes.track_ids, PAST + 1 - count : PAST + 1], run.states[PAST])
    moments = []
    for step, (x, y, heading, _) in enumerate(history.states[-count:]):
        values = boxes.values.copy()
        values[:, :2], values[:, 6] = poses[:, step, :2], poses[:, step, 2]
        moments.append((replace(boxes, values=values), rigid(yaw_rotation(heading), np.array([x, y, 0.0]))))
    return moments


def look_again(scene: Scene, pose: FloatArray, yaw_rate: float, rig: Rig = TINY_RIG) -> Scene:
    """What the sensors of `rig` see once the ego of a generated scene has driven on, by whatever way.

    `scene` is a later moment in the ego's present frame, with boxes, history and the provenance of the generated scene;
    `pose` `(3,)` (x, y, heading) is that frame's in the generated scene's, `yaw_rate` (rad/s) the ego's. Also its road
    and route are seen from here. Raises `SceneError` for a scene that is not of the built-in world, or lacks the
    former.
    """
    if scene.provenance.get("dataset") != DATASET or scene.boxes is None or scene.history is None:
        raise SceneError(
            f"scene {scene.id}: only scenes of the built-in world, with boxes and history, can be sensed again; drive "
            "recordings in closed loop without sensors"
        )
    seed = int(scene.provenance["seed"])
    scenario, (x, y, heading, _) = _scenario_again(seed, scene.kind)
    first = rigid(yaw_rotation(float(heading)), np.array([x, y, 0.0]))
    ego_from_world = invert(first @ rigid(yaw_rotation(float(pose[2])), np.array([pose[0], pose[1], 0.0])))
    road, lights = _crop_road(scenario, ego_from_world), _halt_line(scenario, ego_from_world)
    agents = np.zeros((len(scene.boxes), 0, 3))
    snapshot = Snapshot(scene.kind, seed, road, scene.boxes, float(scene.history.states[-1, 3]), yaw_rate)
    around = Surroundings(agents, road.drivable, road.route, road.speed_limit, lights)
    return _sense(replace(scene, surroundings=around), snapshot, rig, moment=scene.id)


def _sense(scene: Scene, snapshot: Snapshot, rig: Rig, moment: str = "") -> Scene:
    """The scene with what its sensors and the perception stack make of it, from random streams of their own, different
    ones for each `moment`."""
    rng = stream(snapshot.seed, snapshot.kind, f"sensors{moment}")
    lidar = scan_lidar(snapshot, rng, rig.lidar)
    points = points_in_boxes(apply(lidar.extrinsic, lidar.points[:, :3]), snapshot.boxes)
    snapshot = replace(snapshot, boxes=replace(snapshot.boxes, points=points))
    return replace(
        scene,
        boxes=snapshot.boxes,
        cameras=render_cameras(snapshot, rig),
        lidar=lidar,
        radar=scan_radar(snapshot, rng, rig.radar),
        perception=perceive(snapshot, rng),
    )


def stream(seed: int, kind: str, name: str) -> np.random.Generator:
    """An independent random stream for one purpose (`name`) of one scene."""
    digest = hashlib.sha256(f"{name}/{kind}/{seed}".encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))


@functools.lru_cache(maxsize=256)  # a scene that is driven in closed loop is sensed again and again
def _scenario_again(seed: int, kind: str) -> tuple[Scenario, FloatArray]:
    """The scenario of a scene and the ego's state `(4,)` in the world at its current time."""
    scenario, run = _simulate_soundly(seed, kind)
    return scenario, run.states[PAST]


def _simulate_soundly(seed: int, kind: str) -> tuple[Scenario, Run]:
    """The first of the seed's scenarios in which the expert neither touches anybody nor leaves the road."""
    for attempt in range(ATTEMPTS):
        scenario = build_scenario(kind, stream(seed, kind, f"scenario {attempt}"))
        run = simulate(scenario)
        if is_sound(scenario, run):
            return scenario, run
    raise SceneError(f"seed {seed} of kind {kind!r} has no sound scenario in {ATTEMPTS} attempts: use another seed")


def simulate(scenario: Scenario) -> Run:
    """The scenario from `WARM_UP` seconds before the current time to the end of the horizon, in steps of `DT`."""
    x, y, heading, _ = scenario.plan.route.at(scenario.station, scenario.plan.offset(np.asarray(scenario.station)))
    state = np.array([x, y, heading, scenario.speed])
    state[2:3] = wrap_angle(state[2:3])
    expert = Expert(scenario.plan, state, scenario.station)
    states, controls, stations, causes, velocities = [], [], [], [], np.zeros((len(scenario.actors), 2))
    warm_up = round(WARM_UP * RATE_HZ)
    for step in range(-warm_up, FUTURE + 1):
        time = step * DT
        if step >= -PAST:
            states.append(state)
            stations.append([actor.station for actor in scenario.actors])
        if step == 0:
            for velocity, actor in zip(velocities, scenario.actors, strict=True):
                velocity[:] = actor.velocity(time)
        if step == FUTURE:
            break
        control = np.array(expert.control(state, scenario.actors, time, DT))
        controls.append(control)
        causes.append(expert.cause)
        advance_all(scenario.actors, time, DT, (scenario.plan.route, expert.station + EGO.centre, float(state[3])))
        state = unicycle_step(state, control, DT)
    times, traces = DT * np.arange(-PAST, FUTURE + 1), np.array(stations).T
    poses = [actor.trace(trace, times) for actor, trace in zip(scenario.actors, traces, strict=True)]
    return Run(
        states=np.array(states),
        controls=np.array(controls[warm_up:]),
        poses=np.array(poses).reshape(-1, PAST + FUTURE + 1, 3),
        velocities=velocities,
        causes=tuple(causes[warm_up:]),
        yaw_rate=float(controls[warm_up - 1][1] * states[PAST][3]),
    )


def is_sound(scenario: Scenario, run: Run) -> bool:
    """Whether the ego's body stays on the drivable surface and clear of everybody over the future."""
    ego = ego_footprints(run.states[PAST:])
    surface = shapely.union_all([shapely.polygons(polygon) for polygon in scenario.layout.drivable])
    shapely.prepare(surface)
    if not shapely.contains_xy(surface, ego[..., 0], ego[..., 1]).all():
        return False
    bodies = shapely.polygons(ego)
    for actor, poses in zip(scenario.actors, run.poses[:, PAST:], strict=True):
        near = np.hypot(*(poses[:, :2] - run.states[PAST:, :2]).T) < 6.0 + actor.size[0]
        if near.any():
            others = shapely.polygons(footprints(_box_rows(actor, poses[near])))
            if (shapely.distance(bodies[near], others) < 0.15).any():
                return False
    return True


def _detour(scenario: Scenario, run: Run) -> float:
    """How far (m) the ego moves to the left, over the future, around something in its lane."""
    if not scenario.plan.detours:
        return 0.0
    route = scenario.plan.route
    near, offsets = scenario.station, []
    for state in run.states[PAST:]:
        near = route.project(state[:2], near)[0]
        offsets.append(float(scenario.plan.offset(np.asarray(near))))
    return max(offsets) - offsets[0]


def _box_rows(actor: Actor, poses: FloatArray) -> FloatArray:
    """Box rows `(time, 7)` of an actor at `poses` `(time, 3)`."""
    rows = np.zeros((len(poses), 7))
    rows[:, :2], rows[:, 2], rows[:, 3:6], rows[:, 6] = poses[:, :2], actor.size[2] / 2.0, actor.size, poses[:, 2]
    return rows


def _look_around(seed: int, kind: str, scenario: Scenario, run: Run) -> tuple[Snapshot, Surroundings]:
    """The current moment in the ego frame, and what the others do next."""
    x, y, heading, speed = run.states[PAST]
    ego_from_world = invert(rigid(yaw_rotation(float(heading)), np.array([x, y, 0.0])))
    rows = np.zeros((len(scenario.actors), 9))
    for row, actor, pose in zip(rows, scenario.actors, run.poses[:, PAST], strict=True):
        row[:7] = _box_rows(actor, pose[None])[0]
    rows[:, 7:9] = run.velocities
    away = np.hypot(rows[:, 0] - x, rows[:, 1] - y)
    order = np.argsort(away, kind="stable")
    (boxes, agents), (distant, distant_agents) = (
        (
            transform_boxes(
                Boxes(rows[part], tuple(scenario.actors[k].label for k in part), track_ids=part.astype(np.int64)),
                ego_from_world,
            ),
            _as_seen(run.poses[part, PAST + 1 :], run.states[PAST]),
        )
        for part in (order[away[order] <= SEEN], order[away[order] > SEEN])
    )
    road = _crop_road(scenario, ego_from_world)
    snapshot = Snapshot(kind, seed, road, boxes, float(speed), run.yaw_rate)
    lights = _halt_line(scenario, ego_from_world)
    around = Surroundings(agents, road.drivable, road.route, road.speed_limit, lights)
    if len(distant):
        around = replace(around, distant=distant, distant_agents=distant_agents)
    return snapshot, around


def _halt_line(scenario: Scenario, ego_from_world: FloatArray) -> FloatArray | None:
    """The line across the road that a flagger lets nobody pass, see `Surroundings.red_lights`; None without one."""
    halt, (left, right) = scenario.plan.halt, scenario.layout.room
    if halt is None:
        return None
    ends = np.zeros((2, 3))
    ends[:, :2] = scenario.plan.route.at(np.array([halt, halt]), np.array([left, -right]))[:, :2]
    return np.concatenate([apply(ego_from_world, ends)[:, :2].ravel(), [0.0, np.inf]])[None]


def _as_seen(poses: FloatArray, ego: FloatArray) -> FloatArray:
    """Poses `(n, time, 3)` of the world in the frame of the ego in state `ego` `(4,)`."""
    x, y, heading, _ = ego
    ego_from_world = invert(rigid(yaw_rotation(float(heading)), np.array([x, y, 0.0])))
    flat = np.concatenate([poses[..., :2], np.zeros((*poses.shape[:2], 1))], axis=-1)
    places = apply(ego_from_world, flat)[..., :2]
    return np.concatenate([places, wrap_angle(poses[..., 2:] - heading)], axis=-1)


def _crop_road(scenario: Scenario, ego_from_world: FloatArray) -> Road:
    """The road in the ego frame, cropped to the map's window."""

    def place(points: FloatArray) -> FloatArray:
        moved: FloatArray = points @ ego_from_world[:2, :2].T + ego_from_world[:2, 3]
        return moved

    layout = scenario.layout
    window = shapely.box(-BEHIND, -ASIDE, AHEAD, ASIDE)
    surfaces = shapely.simplify([shapely.polygons(place(polygon)) for polygon in layout.drivable], SMOOTH)
    lines = shapely.simplify([shapely.linestrings(place(marking)) for marking in layout.markings], SMOOTH)
    parts = shapely.get_parts(shapely.intersection(surfaces, window))
    strokes = shapely.get_parts(shapely.intersection(lines, window))
    route = place(layout.route.table[::4, :2])
    inside = (route[:, 0] > -BEHIND) & (route[:, 0] < AHEAD) & (np.abs(route[:, 1]) < ASIDE)
    return Road(
        drivable=tuple(shapely.get_coordinates(p) for p in parts if p.geom_type == "Polygon" and not p.is_empty),
        markings=tuple(shapely.get_coordinates(s) for s in strokes if s.geom_type == "LineString" and not s.is_empty),
        route=route[inside],
        speed_limit=layout.speed_limit,
    )


def _trajectories(run: Run) -> tuple[Trajectory, Trajectory]:
    """History and future in the ego frame."""
    x, y, heading, speed = run.states[PAST]
    ego_from_world = invert(rigid(yaw_rotation(float(heading)), np.array([x, y, 0.0])))
    states = run.states.copy()
    states[:, :2] = states[:, :2] @ ego_from_world[:2, :2].T + ego_from_world[:2, 3]
    states[:, 2] = wrap_angle(states[:, 2] - heading)
    states[PAST] = (0.0, 0.0, 0.0, speed)
    return Trajectory(states[: PAST + 1]), Trajectory(states[PAST + 1 :])
