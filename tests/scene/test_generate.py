"""The built-in world: reproducible, exact, never colliding, on the road, and not trivially predicted."""

from __future__ import annotations

import dataclasses
import pickle
from collections import Counter, defaultdict

import numpy as np
import pytest
import shapely

from framework.scene.check import check_scene
from framework.scene.frames import footprints
from framework.scene.kinematics import EGO, ego_footprints, unicycle_controls, unicycle_rollout
from framework.scene.types import Scene, SceneError
from framework.scene.world.generate import DT, generate_scene, look_again
from framework.scene.world.scenarios import HELD_OUT_KINDS, KINDS, TRAIN_KINDS

SEEDS = 10


@pytest.fixture(scope="module")
def scenes() -> dict[str, list[Scene]]:
    return {kind: [generate_scene(seed, kind, rig=None) for seed in range(SEEDS)] for kind in KINDS}


def _each(scenes: dict[str, list[Scene]]) -> list[Scene]:
    return [scene for some in scenes.values() for scene in some]


def test_the_same_seed_is_the_same_scene_to_the_bit() -> None:
    for kind in ("intersection", "blocked_lane"):
        first, again = generate_scene(7, kind), generate_scene(7, kind)
        assert pickle.dumps(first) == pickle.dumps(again)
        assert pickle.dumps(first) != pickle.dumps(generate_scene(8, kind))


def test_sensors_do_not_change_what_happens() -> None:
    seen, unseen = generate_scene(3, "cut_in"), generate_scene(3, "cut_in", rig=None)
    assert seen.future is not None
    assert unseen.future is not None
    np.testing.assert_array_equal(seen.future.states, unseen.future.states)
    assert seen.questions == unseen.questions


def test_training_never_draws_a_held_out_kind() -> None:
    drawn = {generate_scene(seed, rig=None).kind for seed in range(25)}
    assert drawn == set(TRAIN_KINDS)
    assert not drawn & set(HELD_OUT_KINDS)


def test_an_unknown_kind_is_named_with_those_there_are() -> None:
    with pytest.raises(SceneError, match=r"'moon'.*straight.*flagger"):
        generate_scene(0, "moon")


@pytest.mark.slow
def test_every_scene_is_valid(scenes: dict[str, list[Scene]]) -> None:
    for scene in _each(scenes):
        assert check_scene(scene) == []
        assert scene.history is not None
        assert scene.history.states.shape == (7, 4)
        assert scene.future is not None
        assert scene.future.states.shape == (20, 4)


@pytest.mark.slow
def test_the_future_is_exactly_a_unicycle_and_continues_the_history(scenes: dict[str, list[Scene]]) -> None:
    for scene in _each(scenes):
        assert scene.history is not None
        assert scene.future is not None
        now = scene.history.states[-1]
        controls = unicycle_controls(now, scene.future.states, DT)
        np.testing.assert_allclose(unicycle_rollout(now, controls, DT), scene.future.states, atol=1e-7)
        past = scene.history.states
        again = unicycle_rollout(past[0], unicycle_controls(past[0], past[1:], DT), DT)
        np.testing.assert_allclose(again, past[1:], atol=1e-7)


def test_the_expert_stays_on_the_road_and_touches_nobody(scenes: dict[str, list[Scene]]) -> None:
    for scene in _each(scenes):
        assert scene.future is not None
        assert scene.boxes is not None
        assert scene.surroundings is not None
        bodies = shapely.polygons(ego_footprints(scene.future.states))
        road = shapely.union_all([shapely.polygons(polygon) for polygon in scene.surroundings.drivable])
        assert all(road.buffer(1e-6).contains(body) for body in bodies), scene.id
        for box, agent in zip(scene.boxes.values, scene.surroundings.agents, strict=True):
            rows = np.tile(box[:7], (len(agent), 1))
            rows[:, [0, 1, 6]] = agent
            assert (shapely.distance(bodies, shapely.polygons(footprints(rows))) > 0.1).all(), scene.id


def test_only_flaggers_close_a_line_and_the_expert_stops_before_it(scenes: dict[str, list[Scene]]) -> None:
    for scene in _each(scenes):
        assert scene.future is not None
        assert scene.surroundings is not None
        lights = scene.surroundings.red_lights
        assert (lights is not None) == (scene.kind == "flagger")
        if lights is not None:
            line = shapely.LineString(lights[0, :4].reshape(2, 2))
            bodies = shapely.polygons(ego_footprints(scene.future.states))
            assert not shapely.intersects(bodies, line).any(), scene.id
            road = shapely.union_all([shapely.polygons(polygon) for polygon in scene.surroundings.drivable])
            assert road.intersection(line).length > 0.99 * line.length  # from kerb to kerb
            assert 0.0 < shapely.distance(bodies[-1], line) < 40.0


def test_looking_again_at_once_shows_the_same_world_with_other_noise() -> None:
    for kind in ("intersection", "flagger"):
        scene = generate_scene(5, kind)
        assert scene.history is not None
        assert scene.surroundings is not None
        again = look_again(scene, np.zeros(3), 0.0)
        assert again.surroundings is not None
        for one, other in zip(again.surroundings.drivable, scene.surroundings.drivable, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-9)
        for camera, first in zip(again.cameras, scene.cameras, strict=True):
            assert camera.frames == first.frames
        assert again.lidar is not None
        assert scene.lidar is not None
        assert not np.array_equal(again.lidar.points, scene.lidar.points)


def test_recordings_cannot_be_looked_at_again() -> None:
    scene = dataclasses.replace(generate_scene(5, "curve", rig=None), provenance={"dataset": "argoverse"})
    with pytest.raises(SceneError, match="only scenes of the built-in world"):
        look_again(scene, np.zeros(3), 0.0)


def test_the_expert_is_comfortable_in_most_scenes(scenes: dict[str, list[Scene]]) -> None:
    comfortable = []
    for scene in _each(scenes):
        assert scene.history is not None
        assert scene.future is not None
        controls = unicycle_controls(scene.history.states[-1], scene.future.states, DT)
        sideways = controls[:, 1] * scene.future.states[:, 3] ** 2
        comfortable.append(
            (controls[:, 0] > -4.05).all() and (controls[:, 0] < 2.4).all() and (abs(sideways) < 4.89).all()
        )
    assert np.mean(comfortable) > 0.85


def test_constant_velocity_is_clearly_worse_than_the_expert(scenes: dict[str, list[Scene]]) -> None:
    errors = {}
    for kind, some in scenes.items():
        each = []
        for scene in some:
            assert scene.history is not None
            assert scene.future is not None
            ahead = scene.history.states[-1, 3] * DT * np.arange(1, 21)
            straight_on = np.stack([ahead, np.zeros(20)], axis=1)
            each.append(np.linalg.norm(scene.future.states[:, :2] - straight_on, axis=1).mean())
        errors[kind] = np.mean(each)
    assert np.mean([errors[kind] for kind in KINDS if kind != "straight"]) > 1.5
    assert all(error > 0.3 for error in errors.values())


def test_the_first_positions_of_agents_agree_with_their_velocities(scenes: dict[str, list[Scene]]) -> None:
    """Within what the hardest braking (8 m/s^2) can change: velocities tell nothing of the next moment."""
    off = []
    for scene in _each(scenes):
        assert scene.boxes is not None
        assert scene.surroundings is not None
        moved = scene.boxes.values[:, :2] + DT * scene.boxes.values[:, 7:9]
        off += np.linalg.norm(scene.surroundings.agents[:, 0, :2] - moved, axis=1).tolist()
    assert max(off) < 8.0 / 2 * DT**2
    assert np.median(off) < 1e-6


@pytest.mark.slow
def test_answers_are_short_and_no_topic_is_settled_by_its_majority(scenes: dict[str, list[Scene]]) -> None:
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    more = (generate_scene(seed, kind, rig=None) for kind in KINDS for seed in range(SEEDS, 25))
    for scene in (*_each(scenes), *more):
        assert scene.thought
        assert scene.caption
        for question in scene.questions:
            answers[question.topic][question.answer] += 1
            assert len(question.answer) <= 20
    for topic, counts in answers.items():
        assert counts.most_common(1)[0][1] < 0.9 * counts.total(), topic


def test_a_stop_for_someone_is_explained_by_them(scenes: dict[str, list[Scene]]) -> None:
    for kind, cause in (("flagger", "flagger"), ("crossing_pedestrian", "pedestrian")):
        stopped = [
            scene
            for scene in scenes[kind]
            if any(q.topic == "manoeuvre" and q.answer == "stop" for q in scene.questions)
        ]
        assert stopped
        explained = [cause in (scene.thought or "").lower() for scene in stopped]
        assert np.mean(explained) > 0.9


def test_the_body_reaches_from_its_overhangs() -> None:
    corners = ego_footprints(np.array([[0.0, 0.0, 0.0, 3.0]]))[0]
    assert corners[:, 0].max() == pytest.approx(EGO.front)
    assert corners[:, 0].min() == pytest.approx(-EGO.rear_overhang)
