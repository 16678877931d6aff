"""123D's logs against py123d itself: `vectors/py123d_logs.zip` holds two logs and a map by its own writers, one with
JPEGs and points as IPC, one with MP4 and Draco; `vectors/py123d.json` what it reads from them.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgpack
import numpy as np
import pyarrow as pa
import pytest
import shapely
from pyarrow import ipc

from framework.data.sources.py123d import dataset as dataset_module
from framework.data.sources.py123d.dataset import Py123D
from framework.data.sources.py123d.labels import LABELS, NUMBERED, OURS, names_of
from framework.data.sources.py123d.log import open_log
from framework.data.sources.py123d.tables import decode_points
from framework.scene.check import check_scene
from framework.scene.frames import apply
from framework.scene.lens import project
from framework.scene.types import CLASSES, Scene, SceneError
from tests.data.scenes import same
from tests.data.sources.later import inputs, look_ahead
from tests.data.sources.lerobot_tree import colours

VECTORS = Path(__file__).parent / "vectors"
EXPECTED: dict[str, Any] = json.loads((VECTORS / "py123d.json").read_text())["logs"]
MOMENTS = [(name, moment) for name, log in EXPECTED.items() for moment in log["moments"]]
EXACT = 1e-6
CODEC = 6.0
DATASET = Py123D(camera_frames=2)


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """The logs, to be changed."""
    open_log.cache_clear()
    zipfile.ZipFile(VECTORS / "py123d_logs.zip").extractall(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[int, Scene]]:
    folder = tmp_path_factory.mktemp("logs")
    zipfile.ZipFile(VECTORS / "py123d_logs.zip").extractall(folder)
    return {
        log.name: {frame[1] // 1000: DATASET.read_scene(frame) for frame in log.frames[:4]}
        for log in DATASET.find_logs(str(folder))
    }


def _first(folder: Path, dataset: Py123D = DATASET) -> Scene:
    (log, *_) = dataset.find_logs(str(folder))
    return dataset.read_scene(log.frames[0])


def _rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    table = ipc.open_file(pa.py_buffer(path.read_bytes())).read_all()
    changed = change(table).replace_schema_metadata(table.schema.metadata)
    written = io.BytesIO()
    with ipc.new_file(written, changed.schema) as file:
        file.write_table(changed)
    path.write_bytes(written.getvalue())


def _replaced(column: str, change: Callable[[list[Any]], list[Any]]) -> Callable[[pa.Table], pa.Table]:
    def replace(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index(column)
        field = table.schema.field(column)
        return table.set_column(place, field, pa.array(change(table[column].to_pylist()), field.type))

    return replace


@pytest.mark.parametrize(("name", "moment"), MOMENTS, ids=lambda value: value if isinstance(value, str) else "")
def test_poses_boxes_pixels_and_points_are_py123ds(
    name: str, moment: dict[str, Any], scenes: dict[str, dict[int, Scene]]
) -> None:
    scene = scenes[f"nuplan/{name}"][moment["now_us"]]
    assert check_scene(scene) == []
    assert scene.boxes is not None
    assert scene.lidar is not None
    assert scene.surroundings is not None
    boxes = {box["token"]: box for box in moment["boxes"] if box["label"].lower() in LABELS}
    for value, label, token in zip(scene.boxes.values, scene.boxes.labels, boxes, strict=True):
        assert label == LABELS[boxes[token]["label"].lower()]
        np.testing.assert_allclose(value[:3], boxes[token]["centre_ego"], atol=EXACT)
    later = np.array([moment["half_second_later"][token] for token in boxes])
    np.testing.assert_allclose(scene.surroundings.agents[:, 1, :2], later[:, :2], atol=EXACT)
    for camera in scene.cameras:
        expected = moment["cameras"][f"camera.{camera.name}"]
        assert camera.times[-1] == pytest.approx((expected["us"] - moment["now_us"]) / 1e6, abs=1e-9)
        pixels = project(camera, np.array(moment["landmarks"]))
        for index, pixel in expected["pixels"].items():
            np.testing.assert_allclose(pixels[int(index)], pixel, atol=2e-6)
        np.testing.assert_allclose(colours(camera.frames[-1]), expected["colour"], atol=CODEC)
    assert [camera.lens.model for camera in scene.cameras if camera.lens] == ["mei", "f_theta", "brown_conrady"]
    points = apply(scene.lidar.extrinsic, scene.lidar.points[:, :3].astype(np.float64))
    assert len(points) == moment["lidar"]["points"]
    np.testing.assert_allclose(points.mean(axis=0), moment["lidar"]["mean"], atol=4e-6)  # in single precision
    assert round(float(scene.lidar.points[:, 3].sum() * 255)) == moment["lidar"]["intensity"]
    assert scene.future is not None
    future = np.array(moment["future"])[:, :2]
    np.testing.assert_allclose(scene.future.states[1:20:2, :2][: len(future)], future[:10], atol=0.02)


def test_poses_are_py123ds(logs: Path) -> None:
    log = open_log(str(logs / "logs/nuplan_train/log_a"))
    for moment in EXPECTED["log_a"]["moments"]:
        np.testing.assert_allclose(log.pose(moment["now_us"] * 1000), moment["ego_matrix"], atol=EXACT)


def test_velocities_follow_from_tracks_not_from_what_is_stored(scenes: dict[str, dict[int, Scene]]) -> None:
    """The stored ones are 1, 2, 3 m/s; the vehicles ahead move with the ego, at about 8 m/s."""
    for scene in scenes["nuplan/log_a"].values():
        assert scene.boxes is not None
        assert np.hypot(*scene.boxes.values[:, 7:9].T) == pytest.approx([7.3, 7.9], abs=0.3)


def test_the_road_and_its_red_light(scenes: dict[str, dict[int, Scene]]) -> None:
    """The second lane's light turns red 3 s after the start; its line is where the lane begins, across it."""
    for now, scene in scenes["nuplan/log_a"].items():
        around = scene.surroundings
        assert around is not None
        assert around.red_lights is not None
        road = shapely.union_all([shapely.Polygon(area) for area in around.drivable])
        assert shapely.contains(road, shapely.Point(0.0, 0.0))
        (line,) = around.red_lights
        since = (now - 1_600_000_000_000_000) / 1e6
        assert line[4:] == pytest.approx([max(3.0 - since, 0.0), 5.0])
        assert np.hypot(*(line[:2] - line[2:4])) == pytest.approx(4.0, abs=1e-3)
        middle = (line[:2] + line[2:4]) / 2
        assert np.hypot(*middle) == pytest.approx(800.0 * np.sin((40.0 - 8.0 * since) / 80.0 / 2) / 5, abs=0.1)


def test_a_flat_map_gets_the_heights_of_the_drive(logs: Path, scenes: dict[str, dict[int, Scene]]) -> None:
    _rewrite_about(logs / "maps/nuplan/nuplan_vegas.arrow", {"map_has_z": False})
    lifted, own = _first(logs).surroundings, next(iter(scenes["nuplan/log_a"].values())).surroundings
    assert lifted is not None
    assert own is not None
    for area, other in zip(lifted.drivable, own.drivable, strict=True):
        np.testing.assert_allclose(area, other, atol=0.02)


def test_splits_and_counts(logs: Path) -> None:
    found = list(DATASET.find_logs(str(logs)))
    assert [(log.name, log.split, log.official) for log in found] == [
        ("nuplan/log_a", "train", "train"),
        ("nuplan/log_b", "held_out", "held_out"),
    ]
    for log in found:
        assert len(log.frames) == 14
        assert log.left_out["modality that is not read: route_position"] == 1
        assert log.left_out["row between two moments, or without a past and a future"] == 81 - 14
        assert log.left_out["sweep of lidar_merged that no scene has"] == 81 - 14
    (named, *_) = Py123D(cameras=["pcam_f0"]).find_logs(str(logs))
    assert named.left_out["image of fmcam_r that no scene shows"] == 41
    _rewrite_about(logs / "logs/nuplan_train/log_a/sync.arrow", {"split": "mine"})
    open_log.cache_clear()
    assert next(iter(DATASET.find_logs(str(logs)))).official is None


def _rewrite_about(path: Path, entries: dict[str, Any]) -> None:
    table = ipc.open_file(pa.py_buffer(path.read_bytes())).read_all()
    about = msgpack.unpackb(table.schema.metadata[b"metadata"], strict_map_key=False) | entries
    written = io.BytesIO()
    table = table.replace_schema_metadata({b"metadata": msgpack.packb(about)})
    with ipc.new_file(written, table.schema) as file:
        file.write_table(table)
    path.write_bytes(written.getvalue())


@pytest.mark.guarantee("No input of a moment holds anything later than it")
def test_nothing_later_than_the_moment(logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (log, *_) = DATASET.find_logs(str(logs))
    frame = log.frames[1]
    before, folder = DATASET.read_scene(frame), Path(frame[0]).parent
    for path in folder.glob("*.arrow"):
        if path.stem in ("sync", "route_position"):
            continue

        def alter(table: pa.Table, key: str = path.stem) -> pa.Table:
            times = table[f"{key}.timestamp_us"].to_numpy() * 1000
            for name, shift in (("imu_se3", 3.0), ("camera_to_global_se3", 3.0)):
                if f"{key}.{name}" in table.schema.names:
                    table = _replaced(f"{key}.{name}", lambda rows, shift=shift: [  # type: ignore[misc]
                        [row[0] + shift, *row[1:]] if time > frame[1] else row
                        for row, time in zip(rows, times, strict=True)
                    ])(table)  # fmt: skip
            if f"{key}.bounding_box_se3" in table.schema.names:
                table = _replaced(f"{key}.bounding_box_se3", lambda rows: [
                    [[box[0] + 2.0, *box[1:]] for box in row] if time > frame[1] else row
                    for row, time in zip(rows, times, strict=True)
                ])(table)  # fmt: skip
            return table

        _rewrite(path, alter)
    open_log.cache_clear()
    monkeypatch.setattr(dataset_module, "followed_future", lambda *_: before.future)  # what is altered is no driving
    after = DATASET.read_scene(frame)
    assert same(inputs(before), inputs(after))
    assert not same(before.surroundings, after.surroundings)
    assert all((camera.times <= 0).all() for camera in before.cameras)


@pytest.mark.parametrize("whose", ["ego", "others"])
def test_a_central_difference_is_found(
    whose: Literal["ego", "others"], logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_ahead(monkeypatch, whose)
    with pytest.raises(AssertionError, match=r"False = same\(Scene"):
        test_nothing_later_than_the_moment(logs, monkeypatch)


def test_faults_cost_what_they_concern_alone(logs: Path) -> None:
    folder = logs / "logs/nuplan_train/log_a"
    _rewrite_about(folder / "camera.pcam_f0.arrow", {"intrinsics": None})
    boxes, size = folder / "box_detections_se3.arrow", 7
    _rewrite(boxes, _replaced("box_detections_se3.bounding_box_se3", lambda rows: [
        [[*rows[0][0][:size], 0.0, 1.0, 1.0], *rows[0][1:]], *rows[1:]
    ]))  # fmt: skip
    path = folder / "lidar.lidar_merged.arrow"
    _rewrite(path, _replaced("lidar.lidar_merged.data", lambda rows: [b"LASF", *[b"LASF"] * (len(rows) - 1)]))
    (folder / "camera.fmcam_r.arrow").write_bytes(b"ARROW1")
    (log, *_) = DATASET.find_logs(str(logs))
    faults = " ".join(log.left_out)
    assert "camera.pcam_f0.arrow" in faults
    assert "the calibration is incomplete" in faults
    assert "camera.fmcam_r.arrow: is cut short or damaged" in faults
    assert log.left_out["box whose quaternion, centre or size is none"] == 1
    scene = DATASET.read_scene(log.frames[0])
    assert [camera.name for camera in scene.cameras] == ["ftcam_l0"]
    assert scene.lidar is None
    assert "convert the log with lidar_codec ipc_zstd or draco" in scene.provenance["dropped"]
    assert len(log.frames) == 14


@pytest.mark.fault("roads without an area")
def test_an_outline_without_an_area_is_counted_and_the_road_kept(logs: Path) -> None:
    def flat(rows: list[bytes]) -> list[bytes]:
        lane = msgpack.unpackb(rows[0], strict_map_key=False)
        line = np.frombuffer(lane["outline"][b"data"]).reshape(-1, 3)
        lane["outline"][b"data"] = np.linspace(line[0], line[1], len(line)).tobytes()
        return [msgpack.packb(lane), *rows[1:]]

    whole = _first(logs).surroundings
    path = logs / "maps/nuplan/nuplan_vegas.arrow"
    _rewrite(path, _replaced("features", flat))
    open_log.cache_clear()
    (log, *_) = DATASET.find_logs(str(logs))
    assert log.left_out[f"lane of the map that has no area ({path})"] == 1
    scene = DATASET.read_scene(log.frames[0])
    assert whole is not None
    assert scene.surroundings is not None
    assert len(scene.surroundings.drivable) == len(whole.drivable) - 1
    assert check_scene(scene) == []


def test_a_log_without_boxes_or_a_map_or_with_paths(logs: Path) -> None:
    folder = logs / "logs/nuplan_train/log_a"
    (folder / "box_detections_se3.arrow").unlink()
    (logs / "maps/nuplan/nuplan_vegas.arrow").unlink()
    key = "camera.pcam_f0.data"
    path = folder / "camera.pcam_f0.arrow"
    _rewrite(path, lambda table: table.set_column(1, key, pa.array([f"{n}.jpg" for n in range(len(table))])))
    (log, *_) = DATASET.find_logs(str(logs))
    assert log.left_out["log without boxes"] == log.left_out["log without a map"] == 1
    assert 3 <= len(log.frames) <= 4
    scene = DATASET.read_scene(log.frames[0])
    assert scene.boxes is None
    assert scene.surroundings is None
    assert "convert the log with camera_store_option jpeg_binary or mp4" in scene.provenance["dropped"]


def test_a_log_that_cannot_be_read_is_named_and_the_others_read(logs: Path) -> None:
    path = logs / "logs/nuplan_train/log_a/ego_state_se3.arrow"
    path.write_bytes(path.read_bytes()[:100])
    broken, whole = DATASET.find_logs(str(logs))
    path.unlink()
    (lacking, _) = DATASET.find_logs(str(logs))
    assert "ego_state_se3.arrow: is missing" in next(iter(lacking.left_out))
    assert not broken.frames
    assert "ego_state_se3.arrow: is cut short or damaged" in next(iter(broken.left_out))
    assert len(whole.frames) == 14
    _rewrite(
        logs / "logs/nuplan_val/log_b/ego_state_se3.arrow", lambda table: table.drop_columns(["ego_state_se3.imu_se3"])
    )
    open_log.cache_clear()
    assert "column ego_state_se3.imu_se3: is missing" in " ".join(list(DATASET.find_logs(str(logs)))[1].left_out)


def test_points_that_are_damaged_are_an_error() -> None:
    for blob in (b"DRACO\x00", b"\xff\xff\xff\xff\x00"):
        with pytest.raises(SceneError, match="convert the log again"):
            decode_points(blob)


def test_classes_are_ours_or_left_out_by_name() -> None:
    assert set(OURS) <= set(CLASSES)
    known = {name for names in NUMBERED.values() for name in names.split()}
    assert set(LABELS) <= known
    assert names_of("py123d.parser.registry.NuPlanBoxDetectionLabel")[2] == "pedestrian"
    assert names_of("NuScenesBoxDetectionLabel")[22] == "animal"
    assert names_of("AV2SensorBoxDetectionLabel")[18] == "regular_vehicle"
    assert names_of("an.Unknown") == {}
