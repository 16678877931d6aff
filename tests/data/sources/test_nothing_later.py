"""No input of a moment holds anything later than it: altering all that follows leaves the inputs equal to the bit."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pytest
import yaml
from pyarrow import feather, parquet

from framework.data.sources import argoverse, forecasting
from framework.data.sources.argoverse_log import read_poses
from framework.data.sources.base import RecordedDataset
from framework.data.sources.kitti.detection import Kitti
from framework.data.sources.kitti.tracking import KittiTracking
from framework.data.sources.nuscenes.dataset import NuScenes
from framework.data.sources.tracks import SECOND, Track, ego_history
from framework.scene.types import FloatArray
from framework.scene.world import generate
from framework.scene.world.actors import Actor
from framework.scene.world.driver import Expert
from tests.conftest import REPOSITORY
from tests.data.scenes import same
from tests.data.sources.later import CASES, altered, check_nothing_later, inputs, look_ahead

TESTED_ALONE = {
    "columns": "test_columns.py",  # a row is a scene: there is nothing later
    "forecasting": "test_nothing_later.py",
    "lerobot": "test_lerobot.py",
    "perturbed": "test_perturb.py",  # a variant is a scene of its own, and its inputs are its state at the moment
    "physical_ai": "test_physical_ai.py",
    "py123d": "test_py123d.py",
}
"""Datasets whose trees are made by files of their own."""


@pytest.mark.guarantee("No input of a moment holds anything later than it")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.fast_cases(2)
def test_whatever_is_done_later_leaves_the_inputs(name: str, tmp_path: Path) -> None:
    check_nothing_later(CASES[name], tmp_path)


@pytest.mark.parametrize("whose", ["ego", "others"])
@pytest.mark.parametrize("name", sorted(CASES.keys() - {"kitti"}))
@pytest.mark.slow
def test_a_central_difference_is_found(
    name: str, whose: Literal["ego", "others"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_ahead(monkeypatch, whose)
    with pytest.raises(AssertionError):
        check_nothing_later(CASES[name], tmp_path)


def test_an_annotated_sweep_is_what_the_test_finds(tmp_path: Path) -> None:
    case = dataclasses.replace(CASES["kitti_tracking"], dataset=KittiTracking(sweep="annotated"))
    with pytest.raises(AssertionError):
        check_nothing_later(case, tmp_path)


def test_every_dataset_of_the_presets_is_tested() -> None:
    presets = [yaml.safe_load(path.read_text()) for path in (REPOSITORY / "conf" / "sources").glob("*.yaml")]
    named = {match[1] for preset in presets for match in re.finditer(r"_target_': '[\w.]+\.(\w+)'", str(preset))}
    named -= {"RecordingShards", "WorldShards", "ConversationShards"}
    tested = {type(case.dataset).__name__ for case in CASES.values()}
    alone = {name.replace("_", "") for name in TESTED_ALONE}
    assert {name for name in named - tested if name.lower() not in alone} == set()
    assert all((Path(__file__).parent / file).is_file() for file in TESTED_ALONE.values())


def _argoverse_frames(recordings: Path) -> list[tuple[str, int]]:
    return [frame for log in argoverse.Argoverse().find_logs(str(recordings)) for frame in log.frames]


@pytest.mark.fault("a past that tells of the future")
@pytest.mark.guarantee("No input of a moment holds anything later than it")
@pytest.mark.parametrize("place", [1, 40])
def test_argoverse_logs(place: int, recordings: Path, tmp_path: Path) -> None:
    path, now = _argoverse_frames(recordings)[place]
    folder = Path(shutil.copytree(Path(path).parent, tmp_path / Path(path).parent.name))
    for name in ("annotations.feather", "city_SE3_egovehicle.feather"):
        table = feather.read_table(folder / name)
        (folder / name).unlink()
        feather.write_feather(altered(table, table["timestamp_ns"].to_numpy() > now), folder / name)
    before = argoverse.Argoverse().read_scene((path, now))
    monkey = pytest.MonkeyPatch()
    monkey.setattr(argoverse, "ego_future", lambda *_: before.future)  # what is altered is no driving
    with monkey.context():
        after = argoverse.Argoverse().read_scene((str(folder / "annotations.feather"), now))
    monkey.undo()
    assert before.boxes is not None
    assert np.isfinite(before.boxes.values[:, 7:9]).all(axis=1).mean() > 0.7
    assert same(inputs(before), inputs(after))
    assert not same(before.surroundings, after.surroundings)


def test_a_log_without_a_pose_at_the_moment(recordings: Path, tmp_path: Path) -> None:
    path, now = _argoverse_frames(recordings)[20]
    scenes = []
    for number, change in enumerate((0.0, 5.0)):
        folder = Path(shutil.copytree(Path(path).parent, tmp_path / str(number) / Path(path).parent.name))
        poses = feather.read_table(folder / "city_SE3_egovehicle.feather")
        poses = poses.filter(pa.array(poses["timestamp_ns"].to_numpy() != now))
        later = poses["timestamp_ns"].to_numpy() > now
        place = poses.schema.get_field_index("tx_m")
        poses = poses.set_column(place, "tx_m", pa.array(poses["tx_m"].to_numpy() + change * later))
        (folder / "city_SE3_egovehicle.feather").unlink()
        feather.write_feather(poses, folder / "city_SE3_egovehicle.feather")
        poses = read_poses(folder)
        scenes.append(ego_history(poses.track, now, poses.at(np.array([now]))[0]))
    exact = argoverse.Argoverse().read_scene((path, now)).history
    assert exact is not None
    assert same(*scenes)
    np.testing.assert_allclose(scenes[0].states, exact.states, atol=0.05)


@pytest.mark.guarantee("No input of a moment holds anything later than it")
@pytest.mark.parametrize("place", [0, 3])
def test_forecasting_scenarios(place: int, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [frame for log in forecasting.Forecasting().find_logs(str(recordings)) for frame in log.frames]
    path, step = frames[place]
    folder = Path(shutil.copytree(Path(path).parent, tmp_path / Path(path).parent.name))
    copy = folder / Path(path).name
    table = parquet.read_table(path)
    copy.unlink()
    parquet.write_table(altered(table, table["timestep"].to_numpy() > step), copy)
    before = forecasting.read_scene((path, step))
    monkeypatch.setattr(forecasting, "ego_future", lambda *_: before.future)
    after = forecasting.read_scene((str(copy), step))
    assert same(inputs(before), inputs(after))
    assert not same(before.surroundings, after.surroundings)


def test_a_central_difference_in_a_scenario_is_found(
    recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_ahead(monkeypatch, "ego")
    with pytest.raises(AssertionError, match=r"False = same\(Scene"):
        test_forecasting_scenarios(3, recordings, tmp_path, monkeypatch)


@pytest.mark.parametrize(("dataset", "name"), [(Kitti(), "kitti_000008"), (NuScenes(), "nuscenes_sample")])
def test_frames_of_an_info_file(dataset: RecordedDataset, name: str, recordings: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(recordings / name, tmp_path / name))
    info = json.loads((copy / "info.json").read_text())
    later = json.loads(json.dumps(info["data_list"][0]))
    later["instances"] = later["instances"][:1]
    later["timestamp"] = later.get("timestamp", 0.0) + 0.5
    info["data_list"].append(later)
    (copy / "info.json").unlink()
    (copy / "info.json").write_text(json.dumps(info))
    (log,) = dataset.find_logs(str(recordings))
    before, after = dataset.read_scene(log.frames[0]), dataset.read_scene((str(copy / "info.json"), 0))
    assert same(inputs(before), inputs(after))


@pytest.mark.guarantee("No input of a moment holds anything later than it")
@pytest.mark.parametrize("kind", ["cut_in", "lead_braking", "intersection"])
def test_the_built_in_world(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the moment on the ego brakes, and everybody else speeds up and moves aside."""
    drive, advance = Expert.control, Actor.advance

    def brakes(self: Expert, state: FloatArray, actors: list[Actor], time: float, dt: float) -> tuple[float, float]:
        control = drive(self, state, actors, time, dt)
        return control if time < 0 else (-4.0, 0.05)

    def speeds_up(self: Actor, time: float, dt: float, gap: float, lead_speed: float) -> None:
        advance(self, time, dt, gap, lead_speed)
        if time >= 0 and self.desired > 0:
            self.station += 1.0

    monkeypatch.setattr(generate, "is_sound", lambda *_: True)
    before = generate.generate_scene(11, kind, camera_frames=3)
    monkeypatch.setattr(Expert, "control", brakes)
    monkeypatch.setattr(Actor, "advance", speeds_up)
    after = generate.generate_scene(11, kind, camera_frames=3)
    assert same(inputs(before), inputs(after))
    assert not same(before.future, after.future)
    assert not same(before.surroundings, after.surroundings)


def test_a_history_is_the_same_whatever_is_done_next() -> None:
    times = np.arange(-3 * SECOND, 6 * SECOND, SECOND // 50)
    seconds, still = times / SECOND, np.zeros(len(times))

    def history(braking: float) -> FloatArray:
        x = 10.0 * seconds - np.where(seconds > 0, braking / 2 * seconds**2, 0.0)
        return ego_history(Track(times, np.c_[x, still, still, still]), 0, np.eye(4)).states

    assert np.array_equal(history(0.0), history(4.0))
    np.testing.assert_allclose(history(4.0)[:, 3], 10.0)


@pytest.mark.parametrize("at", [-3.0, -2.9, 0.0, 2.95, 3.0])
def test_velocities_are_exact_for_a_constant_acceleration_also_at_the_ends(at: float) -> None:
    times = np.arange(-3 * SECOND, 3 * SECOND + 1, SECOND // 20)
    seconds = times / SECOND
    track = Track(times, np.c_[5 * seconds + 0.75 * seconds**2, -2 * seconds, 0 * seconds, 0 * seconds])
    velocity = track.velocity(np.array([round(at * SECOND)]), 2 * SECOND // 5)
    np.testing.assert_allclose(velocity, [[5 + 1.5 * at, -2.0, 0.0]], atol=1e-9)
