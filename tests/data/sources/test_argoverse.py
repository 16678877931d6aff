"""Argoverse 2 logs: boxes on the sweep, futures on the log and drivable, agents where their tracks go."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pyarrow import feather

from framework.data.sources.argoverse import Argoverse
from framework.scene.check import check_scene
from framework.scene.frames import apply, invert, points_in_box, quaternion_rotation, rigid
from framework.scene.kinematics import unicycle_controls, unicycle_rollout
from framework.scene.types import Scene


@pytest.fixture(scope="module")
def items(recordings: Path) -> list[tuple[str, int]]:
    return [frame for log in Argoverse(sweep="annotated").find_logs(str(recordings)) for frame in log.frames]


@pytest.fixture(scope="module")
def scenes(items: list[tuple[str, int]]) -> list[Scene]:
    return [Argoverse(sweep="annotated").read_scene(item) for item in items[:1] + items[1::9]]


def test_moments_have_past_and_future_or_a_sweep(items: list[tuple[str, int]], scenes: list[Scene]) -> None:
    assert len(items) == 95
    assert [scene.history is None for scene in scenes] == [True] + [False] * (len(scenes) - 1)
    assert [scene.lidar is None for scene in scenes] == [False] + [True] * (len(scenes) - 1)
    assert all(scene.future is not None for scene in scenes)


def test_scenes_are_sound_and_say_where_they_come_from(items: list[tuple[str, int]], scenes: list[Scene]) -> None:
    for scene in scenes:
        assert check_scene(scene) == []
    assert scenes[0].provenance["timestamp"] == str(items[0][1]) == "315973157959879000"
    table = feather.read_table(items[0][0], columns=["timestamp_ns", "category"]).to_pylist()
    there = [row["category"] for row in table if row["timestamp_ns"] == items[0][1]]
    left_out = {name: there.count(name) for name in ("BOLLARD", "SIGN")}
    assert json.loads(scenes[0].provenance["unmapped"]) == left_out
    assert scenes[0].boxes is not None
    assert len(scenes[0].boxes) == len(there) - sum(left_out.values())
    assert len({scene.id for scene in scenes}) == len(scenes)


def test_boxes_hold_exactly_the_points_that_the_annotation_counts(scenes: list[Scene]) -> None:
    lidar, boxes = scenes[0].lidar, scenes[0].boxes
    assert lidar is not None
    assert boxes is not None
    points = apply(lidar.extrinsic, lidar.points[:, :3].astype(np.float64))
    found = np.array([points_in_box(points, box).sum() for box in boxes.values])
    np.testing.assert_array_equal(found, boxes.points)
    ground = points[(np.abs(points[:, 0]) < 12) & (np.abs(points[:, 1]) < 4) & (np.abs(points[:, 2]) < 0.3)]
    assert abs(np.median(ground[:, 2])) < 0.05, "the origin is on the ground"


def test_futures_are_kinematic_and_on_the_log(items: list[tuple[str, int]], scenes: list[Scene]) -> None:
    """Against the pose table itself, read and transformed here, at the nearest logged instants (10 ms at most away)."""
    table = feather.read_table(Path(items[0][0]).with_name("city_SE3_egovehicle.feather")).sort_by("timestamp_ns")
    times = table["timestamp_ns"].to_numpy()
    rotations = quaternion_rotation(np.stack([table[n].to_numpy() for n in ("qw", "qx", "qy", "qz")], axis=1))
    positions = np.stack([table[n].to_numpy() for n in ("tx_m", "ty_m", "tz_m")], axis=1)
    for scene in scenes[1:]:
        assert scene.history is not None
        assert scene.future is not None
        now = int(scene.provenance["timestamp"])
        place = int(np.argmin(np.abs(times - now)))
        assert times[place] == now
        inverse = invert(rigid(rotations[place], positions[place]))
        for trajectory, first in ((scene.history, -6), (scene.future, 1)):
            wanted = now + 250_000_000 * np.arange(first, first + len(trajectory.states))
            nearest = np.abs(times[None] - wanted[:, None]).argmin(axis=1)
            off = np.linalg.norm(apply(inverse, positions[nearest])[:, :2] - trajectory.states[:, :2], axis=1)
            assert (off < 0.1 + trajectory.states[:, 3] * np.abs(times[nearest] - wanted) * 1e-9).all()
        initial = scene.history.states[-1]
        controls = unicycle_controls(initial, scene.future.states, 0.25)
        np.testing.assert_allclose(unicycle_rollout(initial, controls, 0.25), scene.future.states, atol=1e-6)
        assert np.abs(controls[:, 0]).max() < 4.05
        assert np.abs(controls[:, 1]).max() < 0.1


def test_agents_go_where_their_annotations_are_later(items: list[tuple[str, int]]) -> None:
    """A scene's boxes two seconds on, moved back by the two poses, are its agents of then."""
    now = next(i for i, (_, at) in enumerate(items) if i > 1)
    here = Argoverse(sweep="annotated").read_scene(items[now])
    later = min(items[now:], key=lambda item: abs(item[1] - items[now][1] - 2_000_000_000))
    there = Argoverse(sweep="annotated").read_scene(later)
    step = round((later[1] - items[now][1]) / 250_000_000) - 1
    late = (later[1] - items[now][1]) * 1e-9 - 0.25 * (step + 1)
    for scene in (here, there):
        assert scene.boxes is not None
    table = feather.read_table(Path(items[0][0]).with_name("city_SE3_egovehicle.feather"))
    pose = {row["timestamp_ns"]: row for row in table.to_pylist() if row["timestamp_ns"] in (items[now][1], later[1])}
    frames = {
        at: rigid(
            quaternion_rotation(np.array([row[n] for n in ("qw", "qx", "qy", "qz")])),
            np.array([row[n] for n in ("tx_m", "ty_m", "tz_m")]),
        )
        for at, row in pose.items()
    }
    moved = apply(invert(frames[items[now][1]]) @ frames[later[1]], there.boxes.values[:, :3])[:, :2]  # type: ignore[union-attr]
    compared = 0
    for place, track in enumerate(here.boxes.track_ids):  # type: ignore[union-attr, arg-type]
        match = np.flatnonzero(there.boxes.track_ids == track)  # type: ignore[union-attr]
        if len(match):
            speed = np.nan_to_num(np.hypot(*there.boxes.values[match[0], 7:9]), nan=20.0)  # type: ignore[union-attr]
            assert here.surroundings is not None
            off = np.linalg.norm(here.surroundings.agents[place, step, :2] - moved[match[0]])
            assert off < 0.15 + speed * abs(late) * 1.5
            compared += 1
    assert compared > 20


@pytest.mark.fault("road users who come near later")
def test_who_is_annotated_later_alone_is_simulated_from_then_on(items: list[tuple[str, int]]) -> None:
    here, there = (Argoverse().read_scene(items[place]) for place in (1, 21))  # two seconds later
    assert here.boxes is not None
    assert there.boxes is not None
    assert here.surroundings is not None
    assert here.surroundings.distant_agents is not None
    known = set(np.asarray(here.boxes.track_ids).tolist())
    fresh = sum(track not in known for track in np.asarray(there.boxes.track_ids).tolist())
    present = np.isfinite(here.surroundings.distant_agents[:, :, 0])
    assert not present[:, 0].all()
    assert abs(int(present[:, 7].sum()) - fresh) <= 2, "sweeps are no multiples of the period"
    assert check_scene(here) == []
    assert fresh > 0


def test_velocities_of_boxes_lead_to_their_futures(scenes: list[Scene]) -> None:
    compared = 0
    for scene in scenes[1:]:
        assert scene.boxes is not None
        assert scene.surroundings is not None
        step = scene.surroundings.agents[:, 0, :2] - scene.boxes.values[:, :2]
        predicted = 0.25 * scene.boxes.values[:, 7:9]
        known = np.isfinite(step).all(axis=1) & np.isfinite(predicted).all(axis=1)
        assert np.median(np.linalg.norm(step - predicted, axis=1)[known]) < 0.05
        assert np.linalg.norm(step - predicted, axis=1)[known].max() < 1.0
        compared += int((np.linalg.norm(predicted, axis=1)[known] > 1.0).sum())
    assert compared > 5, "some of them move"


def test_the_ego_drives_on_the_drivable_area_along_its_route(scenes: list[Scene]) -> None:
    import shapely

    for scene in scenes[1:]:
        assert scene.surroundings is not None
        assert scene.surroundings.route is not None
        assert scene.future is not None
        area = shapely.union_all([shapely.Polygon(ring) for ring in scene.surroundings.drivable])
        points = shapely.points(scene.future.states[:, :2])
        assert shapely.contains(area, points).all()
        assert shapely.distance(shapely.LineString(scene.surroundings.route), points).max() < 1.1
