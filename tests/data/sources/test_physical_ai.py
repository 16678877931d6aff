"""PhysicalAI-Autonomous-Vehicles against the dataset's own library: its figures for the download that is made here.

`vectors/physical_ai_av.json` has poses, pixels of landmarks, frames and points as it has them, with linear
interpolation between poses, as here.
"""

from __future__ import annotations

import builtins
import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from framework.data.sources.physical_ai import clip as clips
from framework.data.sources.physical_ai import dataset as dataset_module
from framework.data.sources.physical_ai import files, sensors
from framework.data.sources.physical_ai.dataset import LABELS, PhysicalAI
from framework.scene.check import check_scene
from framework.scene.frames import apply
from framework.scene.lens import project
from framework.scene.types import Scene
from tests.data.scenes import same
from tests.data.sources.later import altered, inputs, look_ahead
from tests.data.sources.lerobot_tree import colours
from tests.data.sources.physical_ai_tree import CAMERAS, CLIPS, POLYNOMIAL, RADARS, SPEED, write_download

EXPECTED: dict[str, Any] = json.loads((Path(__file__).parent / "vectors" / "physical_ai_av.json").read_text())
EXACT = 1e-6
CODEC = 4.0


@pytest.fixture(scope="module")
def download(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_download(tmp_path_factory.mktemp("download"))


@pytest.fixture
def unpacked(download: Path, tmp_path: Path) -> Path:
    """The unpacked clip alone, to be changed."""
    folder = tmp_path / "physical_ai"
    shutil.copytree(download, folder, ignore=shutil.ignore_patterns("*.zip"))
    return folder


@pytest.fixture(autouse=True)
def forget() -> Callable[[], None]:
    """Forgets what was read: files change between tests, which no download does."""
    kept = [
        *(files._archive, files._members, files._calibration, files.open_index, clips.open_recording),
        *(sensors._video, sensors._turns, sensors._scans),
    ]

    def clear() -> None:
        for each in kept:
            each.cache_clear()

    clear()
    return clear


def _scenes(folder: Path, dataset: PhysicalAI | None = None, log: int = 0) -> dict[int, Scene]:
    dataset = dataset or PhysicalAI(every_s=0.5)
    found = list(dataset.find_logs(str(folder)))[log]
    return {frame[1] % 1_000_000_000: dataset.read_scene(frame) for frame in found.frames}


@pytest.fixture(scope="module")
def scenes(download: Path) -> dict[int, Scene]:
    return _scenes(download)


@pytest.mark.parametrize("moment", EXPECTED["moments"], ids=lambda moment: str(moment["now_us"]))
def test_poses_pixels_frames_and_points_are_the_librarys(moment: dict[str, Any], scenes: dict[int, Scene]) -> None:
    scene = scenes[moment["now_us"]]
    assert check_scene(scene) == []
    assert [camera.name for camera in scene.cameras] == sorted(CAMERAS)
    for camera in scene.cameras:
        expected = moment["cameras"][camera.name]
        assert camera.times[-1] == pytest.approx((expected["timestamp_us"] - moment["now_us"]) / 1e6, abs=1e-9)
        np.testing.assert_allclose(colours(camera.frames[-1]), expected["colour"], atol=CODEC)
        pixels = project(camera, np.array(moment["landmarks_m"]))
        shown = np.isfinite(pixels).all(axis=1)
        assert shown.sum() >= 4
        np.testing.assert_allclose(pixels[shown], np.array(expected["pixels"])[shown], atol=EXACT)
        angles = np.array(expected["angles"])[shown]  # the polynomial by hand
        radius = sum(factor * angles**power for power, factor in enumerate(POLYNOMIAL))
        np.testing.assert_allclose(np.hypot(*(pixels[shown] - [31.5, 24.5]).T), radius, atol=EXACT)
    assert scene.lidar is not None
    points = apply(scene.lidar.extrinsic, scene.lidar.points[:, :3].astype(np.float64))
    assert len(points) == moment["lidar"]["points"]
    np.testing.assert_allclose(points[0], moment["lidar"]["first_m"], atol=4e-6)  # in single precision
    np.testing.assert_allclose(points.mean(axis=0), moment["lidar"]["mean_m"], atol=EXACT)
    assert round(float(scene.lidar.points[:, 3].sum() * 255)) == moment["lidar"]["intensity"]
    assert scene.history is not None
    np.testing.assert_allclose(scene.history.states[::-2, :2], np.array(moment["past_m"])[:, :2], atol=EXACT)
    if scene.future is not None:
        np.testing.assert_allclose(scene.future.states[1:14:2, :2], np.array(moment["future_m"])[:, :2], atol=0.02)


@pytest.mark.parametrize("moment", EXPECTED["moments"], ids=lambda moment: str(moment["now_us"]))
def test_boxes_are_the_labels_of_the_moment(moment: dict[str, Any], scenes: dict[int, Scene]) -> None:
    boxes = scenes[moment["now_us"]].boxes
    assert boxes is not None
    (label,) = [each for each in moment["labels"] if each["class"] in LABELS]  # that of the moment itself
    (row,) = [row for row, name in zip(boxes.values, boxes.labels, strict=True) if name == LABELS[label["class"]]]
    np.testing.assert_allclose(row[:6], [*label["centre_m"], *label["size_m"]], atol=EXACT)
    np.testing.assert_allclose(row[6], label["yaw"], atol=2e-3)  # the vehicle is inclined, our frame follows its yaw
    assert json.loads(scenes[moment["now_us"]].provenance["unmapped"]) == {"protruding_object": 1}
    assert boxes.track_ids is not None
    assert len(set(boxes.track_ids.tolist())) == len(boxes) == 2


def test_radar_velocities_are_over_ground(download: Path, scenes: dict[int, Scene]) -> None:
    """A standing target ahead of a vehicle at 8 m/s has a radial velocity of -8 m/s."""
    name = f"{next(iter(CLIPS))}.radar_front_center_srr_0.parquet"
    archive = zipfile.ZipFile(download / "radar/radar_front_center_srr_0/radar_front_center_srr_0.chunk_0000.zip")
    scan = parquet.read_table(io.BytesIO(archive.read(name))).to_pylist()
    radar = scenes[2_000_000].radar
    assert radar is not None
    assert len(radar.returns) == 6 * len(RADARS)
    rows = [row for row in scan if row["timestamp"] == 1_953_000]
    front = radar.returns[np.isin(radar.returns[:, 4], np.array([row["rcs"] for row in rows], dtype=np.float32))]
    for row, found in zip(rows, front, strict=True):
        along = np.cos(row["azimuth"]) * np.cos(row["elevation"])
        assert found[3] == pytest.approx(row["radial_velocity"] + SPEED * along, abs=0.15)  # its mount turns, too
        far = np.array([along, np.sin(row["azimuth"]) * np.cos(row["elevation"])]) * row["distance"]
        np.testing.assert_allclose(found[:2] - far, [1.0 - 0.047 * SPEED, 0.1], atol=0.3)


def test_splits_are_official_and_all_is_counted(download: Path) -> None:
    logs = list(PhysicalAI().find_logs(str(download)))
    assert [(log.name, log.split, log.official) for log in logs[:3]] == [
        (name, "train" if split == "train" else "held_out", "train" if split == "train" else "held_out")
        for name, (_, split) in CLIPS.items()
    ]
    assert logs[3].left_out == {"clip of the index that is not downloaded": 1}
    for log in logs[:3]:
        assert len(log.frames) == 14
        assert log.left_out["frame of camera_front_wide_120fov that no scene shows"] == 80 - 14
        assert log.left_out["turn of the LiDAR that no scene has"] == 80 - 14
        assert log.left_out["blurred_boxes of a camera"] == 2
    named = next(iter(PhysicalAI(cameras=["camera_front_wide_120fov"]).find_logs(str(download))))
    assert named.left_out["frame of camera_cross_left_120fov that no scene shows"] == 80


@pytest.mark.guarantee("No input of a moment holds anything later than it")
def test_nothing_later_than_the_moment(
    unpacked: Path, forget: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _scenes(unpacked)[2_000_000]
    name = list(CLIPS)[2]
    features = {"labels/egomotion": "timestamp", "labels/obstacle.offline": "timestamp_us"}
    for feature, column in (features | {f"radar/{radar}": "timestamp" for radar in RADARS}).items():
        path = unpacked / feature / f"{name}.{Path(feature).name}.parquet"
        table = parquet.read_table(path)
        stamps = table[column]
        changed = altered(table, stamps.to_numpy() > 2_000_000)
        parquet.write_table(changed.set_column(changed.schema.get_field_index(column), column, stamps), path)
    forget()
    monkeypatch.setattr(dataset_module, "followed_future", lambda *_: before.future)  # what is altered is no driving
    after = _scenes(unpacked)[2_000_000]
    assert same(inputs(before), inputs(after))
    assert not same(before.surroundings, after.surroundings)
    assert all((camera.times <= 0).all() for camera in before.cameras)


@pytest.mark.parametrize("whose", ["ego", "others"])
def test_a_central_difference_is_found(
    whose: Literal["ego", "others"], unpacked: Path, forget: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    look_ahead(monkeypatch, whose)
    with pytest.raises(AssertionError, match=r"False = same\(Scene"):
        test_nothing_later_than_the_moment(unpacked, forget, monkeypatch)


def _rewrite(path: Path, column: str, values: Callable[[Any], Any]) -> None:
    table = parquet.read_table(path)
    place = table.schema.get_field_index(column)
    changed = pa.array(values(table[column].to_numpy(zero_copy_only=False).copy()))
    parquet.write_table(table.set_column(place, column, changed).replace_schema_metadata(table.schema.metadata), path)


def _dropped(scene: Scene) -> str:
    return scene.provenance.get("dropped", "")


NAME = list(CLIPS)[2]
FRONT = f"camera/camera_front_wide_120fov/{NAME}.camera_front_wide_120fov"


def test_a_video_cut_short_costs_its_camera_alone(unpacked: Path) -> None:
    path = unpacked / f"{FRONT}.mp4"
    path.write_bytes(path.read_bytes()[:300])
    for scene in list(_scenes(unpacked).values())[:2]:
        assert [camera.name for camera in scene.cameras] == ["camera_cross_left_120fov"]
        assert "camera_front_wide_120fov.mp4: unreadable video" in _dropped(scene)


def test_a_sensor_without_a_calibration_is_named(unpacked: Path) -> None:
    extrinsics = unpacked / "calibration/sensor_extrinsics/sensor_extrinsics.chunk_0012.parquet"
    intrinsics = unpacked / "calibration/camera_intrinsics/camera_intrinsics.chunk_0012.parquet"
    _rewrite(extrinsics, "qw", lambda values: np.where(np.arange(len(values)) == 4, np.nan, values))  # the LiDAR
    _rewrite(intrinsics, "fw_poly_1", lambda values: np.where(np.arange(len(values)) == 0, -1.0, values))
    (scene, *_) = _scenes(unpacked).values()
    assert scene.lidar is None
    assert "lidar_top_360fov: sensor_extrinsics: qw: nan is no number" in _dropped(scene)
    assert [camera.name for camera in scene.cameras] == ["camera_cross_left_120fov"]
    assert "fw_poly_0, fw_poly_1" in _dropped(scene)
    extrinsics.unlink()
    files._calibration.cache_clear()
    (scene, *_) = _scenes(unpacked).values()
    assert not scene.cameras
    assert "sensor_extrinsics.chunk_0012.parquet: is missing; download it again" in _dropped(scene)


def test_rows_that_are_none_are_counted(unpacked: Path) -> None:
    labels = unpacked / f"labels/obstacle.offline/{NAME}.obstacle.offline.parquet"
    poses = unpacked / f"labels/egomotion/{NAME}.egomotion.parquet"
    _rewrite(labels, "size_x", lambda values: np.where(np.arange(len(values)) < 3, 0.0, values))
    _rewrite(labels, "timestamp_us", lambda values: np.where(np.arange(len(values)) < 5, 60_000_000, values))
    _rewrite(poses, "x", lambda values: np.where(np.arange(len(values)) == 5, np.nan, values))
    _rewrite(poses, "timestamp", lambda values: np.r_[values[:9], values[8], values[11], values[10], values[12:]])
    (log, *_) = PhysicalAI().find_logs(str(unpacked))
    assert log.left_out["obstacle whose quaternion, centre or size is none"] == 3
    assert log.left_out["obstacle at a time without a pose"] == 2
    told = {name.partition(" (")[0]: count for name, count in log.left_out.items() if name.endswith(f"{NAME})")}
    assert told == {
        "pose whose quaternion or position is none": 1,
        "pose out of the order of time, sorted": 1,
        "pose of a time that another has": 1,
    }
    assert len(log.frames) == 14


def test_files_that_cannot_be_read_are_named(unpacked: Path) -> None:
    stamps = unpacked / f"{FRONT}.timestamps.parquet"
    _rewrite(stamps, "timestamp", lambda values: values[::-1])
    parquet.write_table(pa.table({"spin": [0]}), unpacked / f"lidar/lidar_top_360fov/{NAME}.lidar_top_360fov.parquet")
    (log, *_) = PhysicalAI().find_logs(str(unpacked))
    faults = " ".join(log.left_out)
    assert "not in the order of time" in faults
    assert "column reference_timestamp: is missing; download it again" in faults
    assert log.left_out["clip without a LiDAR"] == 1
    (unpacked / f"labels/egomotion/{NAME}.egomotion.parquet").write_bytes(b"PAR1")
    clips.open_recording.cache_clear()
    (log, *_) = PhysicalAI().find_logs(str(unpacked))
    assert not log.frames
    assert next(iter(log.left_out)).startswith("clip that can't be read (")
    (unpacked / "clip_index.parquet").write_bytes(b"PAR1")
    (log,) = PhysicalAI().find_logs(str(unpacked))
    assert "clip_index.parquet: is cut short or damaged" in next(iter(log.left_out))
    (unpacked / "clip_index.parquet").unlink()
    (log,) = PhysicalAI().find_logs(str(unpacked))
    assert "clip_index.parquet: is missing; download it again" in next(iter(log.left_out))


def test_a_compressed_archive_is_read_like_a_stored_one(download: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(download, tmp_path / "physical_ai"))
    for archive in copy.rglob("*.zip"):
        with zipfile.ZipFile(archive) as stored:
            parts = {name: stored.read(name) for name in stored.namelist()}
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
            for name, content in parts.items():
                packed.writestr(name, content)
    one, other = (list(PhysicalAI().find_logs(str(folder)))[1] for folder in (download, copy))
    assert [place for _, place in one.frames] == [place for _, place in other.frames]
    assert one.left_out == other.left_out
    assert same(PhysicalAI().read_scene(one.frames[0]), PhysicalAI().read_scene(other.frames[0]))


def test_without_draco_the_extra_is_named(unpacked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def missing(name: str, *rest: Any, **more: Any) -> Any:
        if name == "DracoPy":
            raise ImportError(name)
        return load(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    (scene, *_) = _scenes(unpacked).values()
    assert scene.lidar is None
    assert "uv sync --extra physical_ai" in _dropped(scene)
