"""LeRobotDataset v3 against lerobot itself: we read what it wrote, and it read what we write.

`vectors/lerobot_v3.zip` is a dataset that lerobot wrote (speed in km/h, heading clockwise from north in degrees, a
video and images), `vectors/lerobot.json` what lerobot reads from it, and from the dataset of `lerobot_tree`.
"""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from framework.data.shards.writer import Work, write_shards
from framework.data.sources.lerobot.dataset import LeRobot
from framework.data.sources.lerobot.write import write_lerobot
from framework.evaluation.predictions import SCHEMA, plan_columns, write_part
from framework.scene.check import check_scene
from framework.scene.kinematics import unicycle_rollout
from framework.scene.types import Scene, SceneError, Trajectory
from tests.data.scenes import same
from tests.data.sources.later import inputs, look_ahead
from tests.data.sources.lerobot_tree import BRAKING, CURVATURE, INTRINSIC, LENS, MOUNT, RATE, SPEED, colours, scenes
from tools.lerobot import main

VECTORS = Path(__file__).parent / "vectors"
EXPECTED: dict[str, Any] = json.loads((VECTORS / "lerobot.json").read_text())
VEHICLE = "observation.state.vehicle"
THEIRS = LeRobot(
    columns={
        "x": f"{VEHICLE}/x",
        "y": f"{VEHICLE}/y",
        "heading": f"{VEHICLE}/heading",
        "speed": f"{VEHICLE}/0",
        "acceleration": "action.continuous/acceleration",
        "curvature": "action.continuous/curvature",
    },
    factors={"speed": 1 / 3.6, "heading": -np.pi / 180},
    offsets={"heading": np.pi / 2},
    camera_frames=2,
    every_s=0.1,
)
BY_POSES = dataclasses.replace(THEIRS, columns=THEIRS.columns | dict.fromkeys(("speed", "acceleration", "curvature")))
"""The same without speeds and controls."""
CODEC = 4.0
"""How far (of 255) a colour may be off after a video codec."""


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("theirs") / "made"
    zipfile.ZipFile(VECTORS / "lerobot_v3.zip").extractall(folder)
    return folder


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ours") / "ours"
    report = write_lerobot(scenes(), folder, RATE)
    assert (report.episodes, report.rows) == (2, 13)
    assert report.left_out == {"caption": 13}
    return folder


def _read(dataset: LeRobot, folder: Path) -> dict[int, Scene]:
    return {frame[1]: dataset.read_scene(frame) for log in dataset.find_logs(str(folder)) for frame in log.frames}


def test_what_lerobot_wrote_is_read_as_it_reads_it(theirs: Path) -> None:
    logs = list(THEIRS.find_logs(str(theirs)))
    assert [(log.name, len(log.frames)) for log in logs] == [("made/000000", 7), ("made/000001", 8)]
    read, items = _read(THEIRS, theirs), {item["index"]: item for item in EXPECTED["made"]["items"]}
    rows = parquet.read_table(theirs / "data/chunk-000/file-000.parquet")[VEHICLE].to_pylist()
    for index in (20, 94):
        scene, item = read[index], items[index]
        assert check_scene(scene) == []
        assert scene.provenance["task"] == item["task"]
        np.testing.assert_allclose(rows[index], item[VEHICLE], rtol=1e-6)
        front, rear = scene.cameras
        assert front.times.tolist() == [-0.5, 0.0]
        np.testing.assert_allclose(colours(front.frames[-1]), item["observation.images.front"], atol=CODEC)
        assert colours(front.frames[0])[0] == pytest.approx(item["observation.images.front"][0] - 15, abs=CODEC)
        grey = np.asarray(Image.open(io.BytesIO(rear.frames[-1])))
        assert grey.mean() == pytest.approx(item["observation.images.rear"][0], abs=1e-3)


def test_the_past_and_the_future_are_where_the_rows_say(theirs: Path) -> None:
    """lerobot keeps numbers in single precision, here of positions of up to 80 m."""
    rows = np.array(parquet.read_table(theirs / "data/chunk-000/file-000.parquet")[VEHICLE].to_pylist())
    angles = np.pi / 2 - np.radians(rows[:, 1])
    by_states = dataclasses.replace(THEIRS, columns={**THEIRS.columns, "curvature": None})
    for dataset, close in ((THEIRS, 5e-5), (by_states, 5e-3)):
        for index, scene in _read(dataset, theirs).items():
            assert scene.future is not None
            assert scene.history is not None
            places = [(scene.future.states[step], 5 * (step + 1) // 2) for step in (1, 9, 19)]
            for state, later in (*places, (scene.history.states[0], -15), (scene.history.states[-1], 0)):
                offset, angle = rows[index + later, 2:4] - rows[index, 2:4], angles[index]
                turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
                np.testing.assert_allclose(state[:2], turn @ offset, atol=close)
                np.testing.assert_allclose(state[2], angles[index + later] - angle, atol=close)
                np.testing.assert_allclose(state[3], rows[index + later, 0] / 3.6, atol=close * 10)


@pytest.mark.parametrize("left_out", [("x", "y"), ("x", "y", "heading")])
def test_a_path_follows_from_speeds(left_out: tuple[str, ...], theirs: Path) -> None:
    whole = _read(THEIRS, theirs)
    for index, scene in _read(
        dataclasses.replace(THEIRS, columns=THEIRS.columns | dict.fromkeys(left_out)), theirs
    ).items():
        assert scene.history is not None
        assert whole[index].history is not None
        np.testing.assert_allclose(scene.history.states, whole[index].history.states, atol=2e-3)


@pytest.mark.parametrize("item", EXPECTED["ours"]["items"], ids=lambda item: str(item["index"]))
def test_lerobot_reads_what_we_write(item: dict[str, Any], ours: Path) -> None:
    scene = list(scenes())[item["index"]]
    read = _read(LeRobot(every_s=0.25), ours)[item["index"]]
    assert check_scene(read) == []
    assert scene.history is not None
    assert scene.future is not None
    assert read.history is not None
    assert read.future is not None
    row = parquet.read_table(ours / "data/chunk-000/file-000.parquet").slice(item["index"], 1).to_pylist()[0]
    for name in ("observation.state", "action", "plan"):
        np.testing.assert_allclose(row[name], item[name], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(read.future.states.ravel(), item["plan"], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(read.future.states, scene.future.states, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(read.history.states, scene.history.states, rtol=1e-6, atol=1e-6)
    assert item["task"] == "turn left"
    assert item["timestamp"][0] == pytest.approx(row["timestamp"], abs=1e-6)
    (front,) = read.cameras
    np.testing.assert_allclose(colours(front.frames[0]), item["observation.images.front"], atol=CODEC)
    np.testing.assert_allclose(item["observation.images.front"], colours(scene.cameras[0].frames[0]), atol=CODEC)
    np.testing.assert_allclose(front.intrinsic, INTRINSIC, atol=1e-12)
    np.testing.assert_allclose(front.extrinsic, MOUNT, atol=1e-12)
    assert front.lens is not None
    np.testing.assert_allclose(front.lens.coefficients, LENS.coefficients, atol=1e-12)


def test_states_chain_the_scenes_of_a_log_and_actions_are_their_controls(ours: Path) -> None:
    rows = parquet.read_table(ours / "data/chunk-000/file-000.parquet").to_pylist()
    path = unicycle_rollout(np.array([0.0, 0.0, 0.0, SPEED]), np.tile([BRAKING, CURVATURE], (6, 1)), 1 / RATE)
    states = [row["observation.state"] for row in rows[6:13]]
    np.testing.assert_allclose(states, np.r_[[[0.0, 0.0, 0.0, SPEED]], path], atol=1e-5)
    np.testing.assert_allclose([row["action"] for row in rows], [[BRAKING, CURVATURE]] * 13, atol=1e-6)
    stats = json.loads((ours / "meta/stats.json").read_text())
    table = np.array([row["observation.state"] for row in rows])
    np.testing.assert_allclose(stats["observation.state"]["mean"], table.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(stats["observation.state"]["std"], table.std(axis=0), rtol=1e-5)


def test_predictions_take_the_place_of_futures(tmp_path: Path) -> None:
    plans = {scene.id: Trajectory(np.ones((20, 4))) for scene in scenes(1)}
    write_lerobot(scenes(1), tmp_path / "plans", RATE, plans)
    for scene in _read(LeRobot(every_s=0.25), tmp_path / "plans").values():
        assert scene.future is not None
        assert (scene.future.states == 1.0).all()


def test_the_tool_writes_shards_with_the_plans_of_predictions(tmp_path: Path) -> None:
    write_shards(Work(list(range(13)), _scene), tmp_path / "shards")
    plan = plan_columns(_scene(3).__next__(), Trajectory(np.ones((20, 4))))["plan"]
    row = dict.fromkeys(SCHEMA.names) | {"scene": "made-0-3", "plan": plan, "answers": []}
    write_part(tmp_path, 0, [row])
    words = ["--shards", str(tmp_path / "shards"), "--rate", str(RATE), "--out"]
    assert main([*words, str(tmp_path / "all")]) == 0
    assert main([*words, str(tmp_path / "plans"), "--predictions", str(tmp_path)]) == 0
    assert main([*words, str(tmp_path / "plans")]) == 1
    assert len(_read(LeRobot(every_s=0.25), tmp_path / "all")) == 13
    (scene,) = _read(LeRobot(), tmp_path / "plans").values()
    assert scene.future is not None
    assert (scene.future.states == 1.0).all()


def _scene(number: int) -> Iterator[Scene]:
    yield list(scenes())[number]


def test_scenes_without_a_row_are_counted(tmp_path: Path) -> None:
    first, second, third, fourth, *_ = scenes(1)
    broken = dataclasses.replace(third.cameras[0], frames=(b"\x89PNG",))
    given = [
        first,
        dataclasses.replace(second, future=None),
        dataclasses.replace(third, cameras=(broken,)),
        dataclasses.replace(fourth, cameras=()),
    ]
    report = write_lerobot(given, tmp_path / "one", RATE)
    assert report.rows == 1
    assert (
        report.left_out["scene without a future"] == report.left_out["scene with other cameras than the first one"] == 1
    )
    assert any("unreadable image" in reason for reason in report.left_out)
    with pytest.raises(SceneError, match="no scene makes a row"):
        write_lerobot(given[1:2], tmp_path / "none", RATE)
    assert not list(LeRobot().find_logs(str(tmp_path / "none")))
    with pytest.raises(FileExistsError, match="give a new folder"):
        write_lerobot(given, tmp_path / "one", RATE)


@pytest.mark.guarantee("No input of a moment holds anything later than it")
@pytest.mark.parametrize("dataset", [THEIRS, BY_POSES], ids=["speeds of its own", "speeds by its poses"])
@pytest.mark.fast_cases(1)
def test_nothing_later_than_the_moment(dataset: LeRobot, theirs: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(theirs, tmp_path / "made"))
    file = copy / "data/chunk-000/file-000.parquet"
    table = parquet.read_table(file)
    later = np.arange(len(table)) > 20
    for name in (VEHICLE, "action.continuous"):
        changed = [
            [value * 1.0005 for value in row] if late else row
            for row, late in zip(table[name].to_pylist(), later, strict=True)
        ]
        table = table.set_column(
            table.schema.get_field_index(name), name, pa.array(changed, table.schema.field(name).type)
        )
    parquet.write_table(table, file)
    before, after = (_read(dataset, folder)[20] for folder in (theirs, copy))
    assert same(inputs(before), inputs(after))
    assert not same(before.future, after.future)
    assert all((camera.times <= 0).all() for camera in before.cameras)


def test_a_central_difference_is_found(theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look_ahead(monkeypatch, "ego")
    with pytest.raises(AssertionError, match=r"False = same\(Scene"):
        test_nothing_later_than_the_moment(BY_POSES, theirs, tmp_path)


def test_splits_are_the_authors_or_by_hash(ours: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(ours, tmp_path / "ours"))
    assert all(log.official is None for log in LeRobot().find_logs(str(copy)))
    info = json.loads((copy / "meta/info.json").read_text())
    (copy / "meta/info.json").write_text(json.dumps(info | {"splits": {"train": "0:1", "val": "1:2"}}))
    assert [log.official for log in LeRobot().find_logs(str(copy))] == ["train", "held_out"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"steer": "action/0"}, "columns.steer: is no role"),
        ({"x": "observation.state/z"}, "observation.state/z: is none of its 4 numbers"),
        ({"plan": "observation.state"}, "has 4 numbers, a plan 80"),
        ({"speed": "speed/0"}, "no ego motion by columns"),
    ],
)
def test_a_mapping_that_does_not_fit_is_an_error(columns: dict[str, str], message: str, ours: Path) -> None:
    (log,) = LeRobot(columns=columns).find_logs(str(ours))
    assert not log.frames
    assert message in next(iter(log.left_out))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("meta/info.json", "is no description of a dataset"),
        ("meta/episodes/chunk-000/file-000.parquet", "is cut short or damaged"),
    ],
)
def test_a_dataset_that_cannot_be_read_is_named(name: str, message: str, ours: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(ours, tmp_path / "ours"))
    (copy / name).write_bytes((copy / name).read_bytes()[:50])
    (log,) = LeRobot().find_logs(str(copy))
    assert message in next(iter(log.left_out))
    (copy / name).unlink()
    (log,) = LeRobot().find_logs(str(copy))
    assert re.search(r"info.json: No such file|holds no table of episodes", next(iter(log.left_out)))


def _moved(times: list[float]) -> list[float]:
    """A second is missing after row 3."""
    return [time + (place > 3) for place, time in enumerate(times)]


@pytest.mark.parametrize(
    ("change", "row"), [(lambda times: times[::-1], 1), (_moved, 4), (lambda times: [*times[:2], None, *times[3:]], 2)]
)
def test_rows_that_do_not_follow_each_other_cost_their_episode(
    change: Callable[[list[Any]], list[Any]], row: int, ours: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(ours, tmp_path / "ours"))
    path = copy / "data/chunk-000/file-000.parquet"
    table = parquet.read_table(path)
    times = table["timestamp"].to_pylist()
    changed = pa.array([*change(times[:6]), *times[6:]], table["timestamp"].type)  # of the first of two episodes
    parquet.write_table(table.set_column(table.schema.get_field_index("timestamp"), "timestamp", changed), path)
    first, second = LeRobot().find_logs(str(copy))
    with pytest.raises(
        SceneError, match=rf"file-000.parquet: timestamp: episode 0: row {row} is at .* out of order; w"
    ):
        LeRobot().read_scene(first.frames[0])
    assert check_scene(LeRobot().read_scene(second.frames[0])) == []


def test_an_older_version_and_a_video_cut_short_are_named(ours: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(ours, tmp_path / "ours"))
    video = copy / "videos/observation.images.front/chunk-000/file-001.mp4"
    video.unlink()
    info = (copy / "meta/info.json").read_text()
    for log in LeRobot(every_s=0.25).find_logs(str(copy)):
        scene = LeRobot().read_scene(log.frames[0])
        assert len(scene.cameras) == (log.name == "ours/000000")
        assert ("file-001.mp4: is missing" in scene.provenance.get("dropped", "")) == (log.name == "ours/000001")
    (copy / "meta/info.json").write_text(info.replace("v3.0", "v2.1"))
    (old,) = LeRobot().find_logs(str(copy))
    assert "codebase_version: v2.1; convert the dataset to v3.0" in next(iter(old.left_out))


@pytest.mark.parametrize("rate", ["0", "-2", "nan", "fast"])
def test_a_rate_that_is_none_is_refused(rate: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--shards", str(tmp_path), "--rate", rate, "--out", str(tmp_path / "out")])
    assert "is no number of scenes a second" in capsys.readouterr().err
