"""Argoverse 2 forecasting scenarios: the recording vehicle as the ego, everybody else around it."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from framework.data.sources.forecasting import Forecasting, read_scene
from framework.scene.check import check_scene
from framework.scene.kinematics import unicycle_controls, unicycle_rollout
from framework.scene.types import Scene


@pytest.fixture(scope="module")
def items(recordings: Path) -> list[tuple[str, int]]:
    return [frame for log in Forecasting().find_logs(str(recordings)) for frame in log.frames]


@pytest.fixture(scope="module")
def scenes(items: list[tuple[str, int]]) -> list[Scene]:
    return [read_scene(item) for item in items]


def test_the_current_time_slides(items: list[tuple[str, int]], scenes: list[Scene]) -> None:
    assert [step for _, step in items] == [25, 30, 35, 40, 45]
    for scene in scenes:
        assert check_scene(scene) == []
        assert scene.boxes is not None
        assert len(scene.boxes) > 10


def test_states_are_the_tables(items: list[tuple[str, int]], scenes: list[Scene]) -> None:
    """Every second row of states is at a whole tenth of a second, hence in the table itself."""
    table = parquet.read_table(items[0][0], filters=[("track_id", "=", "AV")]).to_pylist()
    rows = {row["timestep"]: row for row in table}
    for (_, step), scene in zip(items, scenes, strict=True):
        assert scene.history is not None
        assert scene.future is not None
        cos, sin = np.cos(rows[step]["heading"]), np.sin(rows[step]["heading"])
        origin = np.array([rows[step]["position_x"], rows[step]["position_y"]])
        for states, first, tolerance in ((scene.history.states[0::2], -15, 1e-6), (scene.future.states[1::2], 5, 0.1)):
            for place, state in enumerate(states):
                row = rows[step + first + 5 * place]
                offset = np.array([row["position_x"], row["position_y"]]) - origin
                expected = [cos * offset[0] + sin * offset[1], cos * offset[1] - sin * offset[0]]
                np.testing.assert_allclose(state[:2], expected, atol=tolerance)
                assert state[3] == pytest.approx(np.hypot(row["velocity_x"], row["velocity_y"]), abs=0.45)


def test_futures_are_kinematic(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.history is not None
        assert scene.future is not None
        controls = unicycle_controls(scene.history.states[-1], scene.future.states, 0.25)
        again = unicycle_rollout(scene.history.states[-1], controls, 0.25)
        np.testing.assert_allclose(again, scene.future.states, atol=1e-6)
        assert np.abs(controls[:, 0]).max() < 5.5, "the log brakes from 4.6 to 2.8 m/s within 0.4 s"
        assert np.abs(controls[:, 1]).max() < 0.05


def test_velocities_point_to_the_next_positions(scenes: list[Scene]) -> None:
    moving = 0
    for scene in scenes:
        assert scene.boxes is not None
        assert scene.surroundings is not None
        step = scene.surroundings.agents[:, 0, :2] - scene.boxes.values[:, :2]
        velocity = scene.boxes.values[:, 7:9]
        moves = (np.linalg.norm(step, axis=1) > 0.7) & (np.hypot(*velocity.T) > 3.0)
        off = np.arctan2(step[:, 1], step[:, 0]) - np.arctan2(velocity[:, 1], velocity[:, 0])
        assert np.abs(np.sin(off[moves] / 2)).max(initial=0.0) < 0.15
        heading = scene.boxes.values[moves, 6] - np.arctan2(velocity[moves, 1], velocity[moves, 0])
        assert np.abs(np.sin(heading / 2)).max(initial=0.0) < 0.15
        moving += int(moves.sum())
    assert moving > 5


def test_everything_of_a_scenario_is_counted(recordings: Path) -> None:
    (log,) = Forecasting().find_logs(str(recordings))
    table = parquet.read_table(log.frames[0][0], columns=["track_id", "timestep"]).to_pylist()
    used = {step for _, step in log.frames}
    seen = {row["track_id"] for row in table if row["timestep"] in used}
    assert log.left_out["track that is at no frame"] == len({row["track_id"] for row in table}) - len(seen) > 0
    assert log.left_out["step between two frames, or without a past and a future"] == 110 - len(used)
    assert log.left_out["lane segment of the map"] > 0


def test_a_scenario_that_is_cut_short_is_named_and_the_others_read(recordings: Path, tmp_path: Path) -> None:
    (log,) = Forecasting().find_logs(str(recordings))
    path = Path(log.frames[0][0])
    for name, size in (("whole", None), ("cut", 5000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"scenario_{name}.parquet").write_bytes(path.read_bytes()[:size])
    cut, whole = Forecasting().find_logs(str(tmp_path))
    assert len(whole.frames) == len(log.frames)
    assert whole.left_out["log without a vector map"] == 1
    (fault,) = cut.left_out
    assert fault.startswith(f"scenario that can't be read ({tmp_path / 'cut' / 'scenario_cut.parquet'}: is cut short")


def test_a_scenario_without_a_column_names_it(recordings: Path, tmp_path: Path) -> None:
    (log,) = Forecasting().find_logs(str(recordings))
    table = parquet.read_table(log.frames[0][0]).drop_columns(["heading"])
    parquet.write_table(table, tmp_path / "scenario_odd.parquet")
    (odd,) = Forecasting().find_logs(str(tmp_path))
    (fault,) = odd.left_out
    assert "scenario_odd.parquet: column heading: is missing; fetch the file" in fault


@pytest.mark.fault("road users who come near later")
def test_everybody_of_the_next_seconds_is_simulated(scenes: list[Scene]) -> None:
    """Moments are half a second apart: who is annotated at the next one is there in this one's second state."""
    appeared = 0
    for here, there in itertools.pairwise(scenes):
        assert here.boxes is not None
        assert there.boxes is not None
        around = here.surroundings
        assert around is not None
        assert around.distant_agents is not None
        known = set(np.asarray(here.boxes.track_ids).tolist())
        fresh = sum(track not in known for track in np.asarray(there.boxes.track_ids).tolist())
        assert np.isfinite(around.distant_agents[:, 1, 0]).sum() == fresh
        appeared += fresh
    assert appeared > 0
