"""What episodes are worth, by hand; comfort against the evaluation's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from framework.evaluation.planning import is_comfortable
from framework.evaluation.scores.closed_loop import distance_to_recording, path_progress, scene_score
from framework.evaluation.slices import SceneMeasures, mean
from framework.evaluation.suite import drop_nan
from framework.scene.comfort import COMFORT_BOUNDS, comfort_quantities
from framework.scene.types import FloatArray, Scene
from framework.simulation import measures
from framework.simulation.closed_loop import MEASURES, episode_measures, measures_by_scene
from framework.simulation.episode import Episodes, follow_plans
from framework.simulation.scenes import batch_scenes
from framework.simulation.simulator import Simulator
from tests.simulation.scenes import ROAD, driven, make_scene, moving, trajectory


def outcome(*runs: tuple[Scene, FloatArray]) -> Episodes:
    batch = batch_scenes([scene for scene, _ in runs], torch.float64)
    return follow_plans(Simulator(), batch, torch.from_numpy(np.stack([states for _, states in runs])))


def test_progress_is_the_share_of_the_experts() -> None:
    scene = make_scene()
    shares = measures.progress(
        outcome((scene, driven(8.0)), (scene, driven(4.0)), (scene, driven(12.0)), (scene, driven(0.0)))
    )
    assert shares.tolist() == pytest.approx([1.0, 0.5, 1.0, 0.0])


def test_progress_follows_the_route_around_a_bend() -> None:
    bend = make_scene(future=trajectory(8.0, curvature=0.02), route=np.r_[[[0.0, 0.0]], driven(10.0, 0.0, 0.02)[:, :2]])
    shares = measures.progress(outcome((bend, driven(8.0, curvature=0.02)), (bend, driven(4.0, curvature=0.02))))
    assert shares.tolist() == pytest.approx([1.0, 0.5], abs=1e-2)


def test_where_the_expert_stands_there_is_no_progress_to_be_made() -> None:
    wait = make_scene(speed=0.0)
    assert measures.progress(outcome((wait, driven(0.0)))).tolist() == [1.0]


def test_an_expert_without_a_map_is_followed_itself() -> None:
    bare = make_scene(route=None)
    assert measures.progress(outcome((bare, driven(4.0)))).tolist() == pytest.approx([0.5])


def test_comfort_is_the_evaluations() -> None:
    rng = np.random.default_rng(0)
    runs = [(make_scene(drivable=()), driven(8.0, *rng.uniform([-5.0, -0.08], [4.0, 0.08]))) for _ in range(60)]
    jerky = driven(8.0)
    jerky[10:, 3] += 0.8
    runs.append((make_scene(), jerky))
    found = measures.comfortable(outcome(*runs))
    initial = np.array([0.0, 0.0, 0.0, 8.0])
    expected = [is_comfortable(comfort_quantities(initial, states, 4.0)) for _, states in runs]
    assert found.tolist() == expected
    assert 5 < sum(expected) < 56


def test_each_comfort_bound_is_judged_by_itself() -> None:
    kept = measures.comforts(outcome((make_scene(), driven(8.0, acceleration=3.0))))
    assert dict(zip(COMFORT_BOUNDS, kept[0].tolist(), strict=True)) == {
        name: name != "longitudinal_acceleration" for name in COMFORT_BOUNDS
    }


def test_what_comes_after_the_end_of_an_episode_is_not_felt() -> None:
    wall = make_scene([moving("car", 30.0, 0.0)])
    episodes = outcome((wall, driven(8.0)))
    assert measures.no_fault(episodes).tolist() == [0.0]
    assert measures.comfortable(episodes).tolist() == [1.0]
    assert measures.progress(episodes).tolist() == pytest.approx([26.0 / 40.0])
    assert measures.least_time_to_collision(episodes).tolist() == [0.0]


@pytest.mark.parametrize(("speed", "kept"), [(8.0, 1.0), (10.0, 1.0), (11.0, 1.0 - 1.0 / 2.23), (13.0, 0.0)])
def test_speed_compliance(speed: float, kept: float) -> None:
    episodes = outcome((make_scene(), driven(speed)), (make_scene(speed_limit=None), driven(speed)))
    assert measures.speed_compliance(episodes).tolist() == pytest.approx([kept, 1.0])


@pytest.mark.parametrize(("gap", "kept"), [(48.3, 1.0), (47.0, 0.0)])
def test_time_is_kept_above_a_second_or_so(gap: float, kept: float) -> None:
    # After five seconds at 8 m/s the front is at 43.6 m; 0.95 s are 7.6 m. The last two metres decide.
    episodes = outcome((make_scene([moving("car", gap + 2.25 + 3.0, 0.0)]), driven(8.0)))
    assert measures.keeps_time(episodes).tolist() == [kept]


def test_the_planning_score_by_hand() -> None:
    scene = make_scene()
    cone = make_scene([moving("traffic_cone", 30.0, 0.0)])
    narrow = make_scene(drivable=(ROAD * (1.0, 0.15),))
    runs = [(scene, driven(8.0)), (scene, driven(4.0)), (cone, driven(8.0)), (narrow, driven(8.0))]
    # Half the way, at once at half the speed: uncomfortable. The cone: half for the collision, no time, 28 of 40 m.
    expected = [1.0, (5 + 0 + 2.5) / 12, 0.5 * (0 + 2 + 5 * 28 / 40) / 12, 0.0]
    assert measures.planning_score(outcome(*runs)).tolist() == pytest.approx(expected)


def test_the_scene_score_and_the_recording_are_the_evaluations() -> None:
    """The same formulas on tensors as `framework.evaluation.scores.closed_loop` has on arrays."""
    bend = make_scene(future=trajectory(8.0, curvature=0.02))
    runs = [(make_scene(), driven(speed)) for speed in (0.0, 3.0, 6.0, 8.0, 12.0)]
    runs += [(bend, driven(7.0, curvature=0.015)), (make_scene([moving("car", 30.0, 0.0)]), driven(8.0))]
    runs += [(make_scene(), driven(8.0, curvature=0.05)), (make_scene(speed=0.0), driven(0.0))]
    episodes = outcome(*runs)
    scores, progress = measures.scene_score(episodes), measures.recorded_progress(episodes)
    distances, times = measures.recorded_distance(episodes), 0.25 * np.arange(1, 21)
    off = measures.on_road(episodes) == 0
    for row, (scene, _) in enumerate(runs):
        recorded = np.concatenate([np.zeros((1, 2)), scene.future.states[:, :2]])  # type: ignore[union-attr]
        length = np.hypot(*np.diff(recorded, axis=0).T).sum()
        share = path_progress(episodes.ego[row, -1, :2].numpy(), recorded)
        assert float(progress[row]) == pytest.approx(share if length >= 5 else 1.0)
        fault = bool(episodes.fault[row] > 0)
        assert float(scores[row]) == pytest.approx(scene_score(share, fault, bool(off[row]), length))
        ego = episodes.ego[row, 1:, :2].numpy()
        expected = distance_to_recording(ego, times, recorded[1:], times)
        assert float(distances[row]) == pytest.approx(expected)
    assert {0.0, 1.0} < set(scores.tolist())


def test_measures_by_scenario_kind() -> None:
    walls = [make_scene([moving("car", 30.0, 0.0)], name=name, kind="wall") for name in ("fast", "slow")]
    unmapped = make_scene(name="unmapped", drivable=(), speed_limit=None, kind="unmapped")
    scenes, speeds = [*walls, make_scene(), unmapped], [8.0, 4.0, 8.0, 8.0]
    episodes = outcome(*((scene, driven(speed)) for scene, speed in zip(scenes, speeds, strict=True)))
    score = SceneMeasures(dict.fromkeys(MEASURES, mean))
    for scene, row in zip(scenes, measures_by_scene(episodes), strict=True):
        score.update(scene, row)
    metrics = drop_nan(score.compute())
    assert metrics["scenes"] == {"all": 4, "straight": 1, "unmapped": 1, "wall": 2}
    assert metrics["at_fault_collision"] == {"all": 0.25, "straight": 0.0, "unmapped": 0.0, "wall": 0.5}
    assert metrics["off_road"] == {"all": 0.0, "straight": 0.0, "wall": 0.0}  # nobody knows for the unmapped
    assert "unmapped" not in metrics["speed_compliance"]
    assert "red_light" not in metrics
    assert metrics["progress"]["wall"] == pytest.approx((26 / 40 + 0.5) / 2)
    each = episode_measures(episodes)
    assert metrics["planning_score"]["all"] == pytest.approx(float(each["planning_score"].mean()))
    assert each["off_road"].isnan().tolist() == [False, False, False, True]
