"""Variants of scenes: paths against arcs, what stays as recorded, and what no variant may show."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import pytest
import shapely

from framework.data.sources.base import Frame, RecordedLog
from framework.data.sources.perturb import Spread, along, expert_from, perturb
from framework.data.sources.perturbed import Perturbed
from framework.scene.check import check_scene
from framework.scene.kinematics import box_footprints, ego_footprints
from framework.scene.types import FloatArray, Scene, SceneError, Trajectory
from framework.scene.world.generate import outline_scene
from framework.simulation.scenes import batch_scenes
from framework.simulation.simulator import Simulator

RADIUS = 40.0
NOTHING = Spread(shift_m=0, lateral_m=0, speed=0, ego_lateral_m=0, ego_speed=0)


def arc(angles: FloatArray, radius: float = RADIUS) -> FloatArray:
    """Poses on a circle to the left, which start at the origin."""
    return np.stack([radius * np.sin(angles), RADIUS - radius * np.cos(angles), angles], axis=-1)


def test_a_path_is_followed_aside_and_beyond() -> None:
    path = arc(np.linspace(0, 1.0, 401))
    stations = np.array([0.0, 13.0, 26.0])
    np.testing.assert_allclose(along(path, stations), arc(stations / RADIUS), atol=1e-3)
    np.testing.assert_allclose(along(path, stations, 2.0), arc(stations / RADIUS, RADIUS - 2.0), atol=1e-3)
    before, after = along(path, np.array([-3.0, RADIUS + 5.0]))
    np.testing.assert_allclose(before, [-3.0, 0.0, 0.0], atol=1e-9)
    end = arc(np.array([1.0]))[0]
    np.testing.assert_allclose(after - end, [5 * math.cos(1.0), 5 * math.sin(1.0), 0.0], atol=1e-3)


def test_the_expert_of_a_variant_rejoins_the_recorded_one() -> None:
    """It starts at the origin with the ego's speed; after three seconds it is as far aside as the frame has moved."""
    times = np.arange(1, 21) / 4.0
    straight = Trajectory(np.column_stack([8 * times, 0 * times, 0 * times, np.full(20, 8.0)]), 4.0)
    expert = expert_from(straight, 8.0, offset=0.5, factor=1.25).states
    late = times >= 3.0
    np.testing.assert_allclose(expert[late, 1], -0.5, atol=1e-9)
    np.testing.assert_allclose(expert[late][1:, 3], 8.0)
    np.testing.assert_allclose(expert[-1, 0] - straight.states[-1, 0], 0.25 * 8.0 * 3.0 / 2)
    assert expert[0, 3] == pytest.approx(8 * (1 + 0.25 * (1 - 0.25 / 3.0)))
    assert abs(expert[0, 1]) < 0.05
    np.testing.assert_allclose(expert_from(straight, 8.0, 0.0, 1.0).states, straight.states, atol=1e-9)


def test_the_expert_of_a_parked_ego_stays_aside() -> None:
    """It cannot move sideways to where the recorded ego is parked."""
    parked = Trajectory(np.tile([0.1, 0.0, 0.02, 0.0], (20, 1)), 4.0)
    np.testing.assert_allclose(expert_from(parked, 0.0, offset=0.5, factor=1.1).states, parked.states)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [outline_scene(seed, kind, 1) for seed, kind in enumerate(("cut_in", "intersection", "lead_braking") * 3)]


def test_without_spread_everybody_drives_as_recorded(scenes: list[Scene]) -> None:
    for scene in scenes:
        same = perturb(scene, NOTHING, np.random.default_rng(0))
        for one, other in ((same.boxes, scene.boxes), (same.history, scene.history), (same.future, scene.future)):
            name = "values" if hasattr(one, "values") else "states"
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-6)
        assert same.surroundings is not None
        assert scene.surroundings is not None
        np.testing.assert_allclose(same.surroundings.agents, scene.surroundings.agents, atol=1e-6)
        assert (same.cameras, same.lidar, same.caption, same.questions) == ((), None, None, ())


def overlaps(scene: Scene) -> set[tuple[int, int]]:
    """Pairs of bodies that overlap now; the ego is 0."""
    assert scene.boxes is not None
    corners = box_footprints(scene.boxes.values[:, [0, 1, 6, 3, 4]])
    bodies = shapely.polygons(np.concatenate([ego_footprints(np.zeros((1, 3))), corners]))
    return {(i, j) for i in range(len(bodies)) for j in range(i) if bodies[i].intersects(bodies[j])}


@pytest.mark.guarantee("Variants of recorded scenes are plausible: none begins with an overlap that was not recorded")
def test_variants_differ_are_valid_and_can_be_driven(scenes: list[Scene]) -> None:
    wide = Spread(shift_m=15, lateral_m=2.0, speed=0.5, ego_lateral_m=1.5, ego_speed=0.3)
    made = [(scene, perturb(scene, wide, np.random.default_rng(seed))) for scene in scenes for seed in range(3)]
    for scene, variant in made:
        assert check_scene(variant) == []
        assert overlaps(variant) <= overlaps(scene)
    moved = [abs(v.boxes.values[:, :2] - s.boxes.values[:, :2]).max() for s, v in made if len(s.boxes or ())]  # type: ignore[union-attr]
    assert np.median(moved) > 1.0
    assert len({v.history.states.tobytes() for _, v in made}) > len(made) / 2  # type: ignore[union-attr]
    batch = batch_scenes([variant for _, variant in made])
    assert Simulator().start(batch).ego.shape == (len(made), 4)


def test_speeds_and_velocities_change_alike(scenes: list[Scene]) -> None:
    """The box's velocity is that of its next poses, as in the recorded scene."""
    fast = dataclasses.replace(NOTHING, speed=0.5)
    for scene in scenes:
        variant = perturb(scene, fast, np.random.default_rng(3))
        assert scene.boxes is not None
        assert variant.boxes is not None
        before, after = (np.linalg.norm(each.boxes.values[:, 7:9], axis=1) for each in (scene, variant))  # type: ignore[union-attr]
        steps = [
            np.linalg.norm(each.surroundings.agents[:, 0, :2] - each.boxes.values[:, :2], axis=1)  # type: ignore[union-attr]
            for each in (scene, variant)
        ]
        moving = (before > 1) & (steps[0] > 0.25)
        np.testing.assert_allclose(after[moving] / before[moving], steps[1][moving] / steps[0][moving], rtol=0.1)


class Recorded:
    """Two frames of the built-in world."""

    lacks = {"perception": "none", "radar": "none"}  # noqa: RUF012

    def find_logs(self, folder: str) -> Iterator[RecordedLog]:
        yield RecordedLog("one", ((folder, 3), (folder, 8)))

    def read_scene(self, frame: Frame) -> Scene:
        return outline_scene(frame[1], "cut_in", 1)


def test_a_dataset_has_each_scene_in_variants() -> None:
    source = Perturbed(dataset=Recorded(), variants=3)
    (log,) = source.find_logs("place")
    assert log.frames == tuple(("place", number) for number in (9, 10, 11, 24, 25, 26))
    read = [source.read_scene(frame) for frame in log.frames]
    assert [scene.id.rpartition("~")[2] for scene in read] == ["0", "1", "2"] * 2
    assert len({scene.id for scene in read}) == 6
    assert len({scene.history.states.tobytes() for scene in read}) == 6  # type: ignore[union-attr]
    again = source.read_scene(log.frames[1])
    assert (again.boxes.values == read[1].boxes.values).all()  # type: ignore[union-attr]
    assert set(source.lacks) == {"cameras", "lidar", "radar", "questions", "caption", "thought"}
    assert source.code


def test_what_no_variant_can_be_made_of_is_told() -> None:
    with pytest.raises(SceneError, match="field `future` is missing"):
        perturb(dataclasses.replace(outline_scene(0, "cut_in", 1), future=None), NOTHING, np.random.default_rng(0))
    with pytest.raises(ValueError, match="give at least one of variants"):
        Perturbed(dataset=Recorded(), variants=0)
