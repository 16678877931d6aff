"""Argoverse 2 logs with something missing or damaged: each fault is named and counted, and the rest converted."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import feather

from framework.data.sources import argoverse
from framework.data.sources.argoverse import Argoverse
from framework.data.sources.argoverse_log import read_poses
from framework.data.sources.base import RecordedLog
from framework.data.sources.recordings import find_recordings
from framework.scene.check import check_scene
from framework.scene.frames import quaternion_rotation
from framework.scene.types import Scene, SceneError
from tests.data.scenes import same
from tests.data.sources.argoverse_tree import CAMERAS, SECOND, START, SWEEP, _drive, write, write_log

NOW = START + 2 * SWEEP


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log(tmp_path_factory.mktemp("argoverse"))


@pytest.fixture
def log(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / made.name))


def found(log: Path, **arguments: Any) -> RecordedLog:
    (one,) = Argoverse(**{"sweep": "annotated", **arguments}).find_logs(str(log.parent))
    return one


def scene_at(log: Path, now: int = NOW, **arguments: Any) -> Scene:
    argoverse._open.cache_clear()  # the files have changed since
    path = next(path for path, at in found(log, **arguments).frames if at == now)
    return Argoverse(**{"sweep": "annotated", **arguments}).read_scene((path, now))


def left_out(scene: Scene) -> dict[str, int]:
    counts: dict[str, int] = json.loads(scene.provenance.get("dropped", "{}"))
    return counts


def change(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    table = feather.read_table(path, memory_map=False)
    columns = {name: table[name].to_numpy(zero_copy_only=False).copy() for name in table.schema.names}
    edit(columns)
    write(path, columns)


def test_all_of_a_whole_log_is_read_or_named(log: Path) -> None:
    (log / "sensors" / "radar").mkdir()
    (log / "sensors" / "radar" / "123.bin").write_bytes(b"1")
    scene, counts = scene_at(log), dict(found(log).left_out)
    assert check_scene(scene) == []
    assert {camera.name for camera in scene.cameras} == set(CAMERAS)
    assert (scene.cameras[0].width, scene.cameras[0].height) == (62, 82), "the front camera is upright"
    assert scene.provenance["lidars"] == '{"up_lidar": 32, "down_lidar": 32}'
    assert left_out(scene) == {}
    assert {name: counts[name] for name in counts if name.startswith("file")} == {
        "file that is not read: map/*___img_Sim*_city.json": 1,
        "file that is not read: map/*_ground_height_surface____PIT.npy": 1,
        "file that is not read: sensors/radar/*.bin": 1,
    }
    assert counts["lane segment of the map"] == 2
    assert counts["pedestrian crossing of the map"] == 1
    shown = sum(len(camera.frames) for place in range(1, 6) for camera in scene_at(log, START + place * SWEEP).cameras)
    assert shown + sum(count for name, count in counts.items() if name.startswith("image of")) == 9 * 10
    moments = counts["moment with neither a past and a future nor sensors and a target"]
    assert counts["moment at which some cameras have not started, or have ended"] == 1
    assert moments + 1 + len(found(log).frames) == 81


def test_images_are_the_newest_up_to_the_moment_and_extrinsics_follow_the_vehicle(log: Path) -> None:
    """Exposures between two poses too: against the drive itself."""
    folder = log / "sensors" / "cameras" / "ring_side_left"
    early, late = NOW - 3_210_000, NOW + 10_000
    for path in folder.iterdir():
        path.rename(folder / f"{early if int(path.stem) < NOW else late}.jpg")
    camera = next(camera for camera in scene_at(log).cameras if camera.name == "ring_side_left")
    np.testing.assert_allclose(camera.times, [-0.00321])
    calibration = feather.read_table(log / "calibration" / "egovehicle_SE3_sensor.feather").to_pylist()
    row = next(row for row in calibration if row["sensor_name"] == "ring_side_left")
    mounted = np.eye(4)
    mounted[:3, :3] = quaternion_rotation(np.array([row[name] for name in ("qw", "qx", "qy", "qz")]))
    mounted[:3, 3] = [row[name] for name in ("tx_m", "ty_m", "tz_m")]
    poses = []
    for at in (early, NOW):
        turned, place = _drive(np.array([at]))
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = quaternion_rotation(turned[0]), place[0]
        poses.append(pose)
    expected = np.linalg.inv(poses[1]) @ poses[0] @ mounted
    expected[2, 3] += 0.33
    np.testing.assert_allclose(camera.extrinsic, expected, atol=5e-6)  # an arc between two poses
    assert np.linalg.norm(camera.extrinsic[:3, 3] - mounted[:3, 3] - [0, 0, 0.33]) > 0.02, "8 m/s for 3.2 ms"


def test_several_images_of_a_camera_are_its_past(log: Path) -> None:
    arguments = {"camera_frames": 3, "camera_step_s": 0.1, "camera_age_s": 0.06, "cameras": ["ring_side_left"]}
    scene = scene_at(log, START + 3 * SWEEP, **arguments)
    (camera,) = scene.cameras
    np.testing.assert_allclose(camera.times, [-0.2, -0.1, 0.0], atol=0.06)
    assert len(set(camera.frames)) == 3
    assert check_scene(scene) == []
    assert found(log, **arguments).left_out["image of ring_front_left that no scene shows"] == 10


@pytest.mark.guarantee("No input of a moment holds anything later than it")
def test_later_images_and_sweeps_change_nothing(log: Path) -> None:
    past = {"sweep": "past", "camera_frames": 2, "camera_step_s": 0.1}
    before = [scene_at(log), scene_at(log, **past)]
    for path in [*log.glob("sensors/cameras/*/*.jpg"), *log.glob("sensors/lidar/*.feather")]:
        if int(path.stem) > NOW:
            path.unlink()
    change(log / "city_SE3_egovehicle.feather", lambda c: c["tx_m"].__iadd__((c["timestamp_ns"] > NOW) * 3e-3))
    after = [scene_at(log), scene_at(log, **past)]
    for one, other in zip(before, after, strict=True):
        assert same((one.cameras, one.lidar, one.history), (other.cameras, other.lidar, other.history))


def test_a_past_sweep_has_no_return_after_the_moment(log: Path) -> None:
    path = log / "sensors" / "lidar" / f"{NOW - SWEEP}.feather"
    change(path, lambda columns: columns["offset_ns"].__setitem__(slice(60, 64), SWEEP + 1))
    scene, annotated = scene_at(log, sweep="past"), scene_at(log, NOW - SWEEP)
    assert scene.lidar is not None
    assert annotated.lidar is not None
    np.testing.assert_array_equal(scene.lidar.points, annotated.lidar.points[:60])
    assert left_out(scene) == {"LiDAR point after the moment": 4}
    assert scene.lidar.extrinsic[0, 3] == pytest.approx(-0.8, abs=0.01), "8 m/s for 0.1 s"


FRONT = "sensors/cameras/ring_front_left"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_bytes(b""), "has no bytes; fetch it again"),
        (lambda path: path.write_bytes(path.read_bytes()[:700]), "is cut short; fetch it again"),
        (lambda path: path.write_bytes(b"\xff\xd8 no image \xff\xd9"), "is no image; fetch it again"),
        (lambda path: shutil.copy(next(path.parents[1].glob("ring_front_center/*")), path), "62 x 82 pixels, calibr"),
    ],
)
def test_a_damaged_image_is_named_and_the_other_cameras_kept(log: Path, damage: Any, said: str) -> None:
    path = max(path for path in (log / FRONT).iterdir() if int(path.stem) <= NOW)
    damage(path)
    scene = scene_at(log)
    (name,) = left_out(scene)
    assert name.startswith(f"sensor ring_front_left: {path}: ")
    assert said in name
    assert {camera.name for camera in scene.cameras} == set(CAMERAS) - {"ring_front_left"}
    assert check_scene(scene) == []


def _without(name: str) -> Callable[[dict[str, Any]], None]:
    def edit(columns: dict[str, Any]) -> None:
        kept = columns["sensor_name"] != name
        columns.update({key: values[kept] for key, values in columns.items()})

    return edit


def _zero(name: str) -> Callable[[dict[str, Any]], None]:
    def edit(columns: dict[str, Any]) -> None:
        for key in ("qw", "qx", "qy", "qz"):
            columns[key][columns["sensor_name"] == name] = 0.0

    return edit


@pytest.mark.parametrize(
    ("file", "edit", "said"),
    [
        ("intrinsics", _without("stereo_front_left"), "intrinsics.feather: sensor_name: no row for the camera"),
        ("egovehicle_SE3_sensor", _without("stereo_front_left"), "sensor_name: no row stereo_front_left; restore"),
        ("egovehicle_SE3_sensor", _zero("stereo_front_left"), "qw to tz_m of stereo_front_left: no rotation"),
        ("intrinsics", lambda c: c["fx_px"].__setitem__(7, 0.0), "stereo_front_left: a focal length or size"),
    ],
)
def test_a_camera_without_its_calibration_is_named(log: Path, file: str, edit: Any, said: str) -> None:
    change(log / "calibration" / f"{file}.feather", edit)
    scene = scene_at(log)
    (name,) = left_out(scene)
    assert said in name
    assert len(scene.cameras) == 8


def test_a_log_without_any_calibration_names_each_camera(log: Path) -> None:
    shutil.rmtree(log / "calibration")
    scene = scene_at(log)
    assert scene.cameras == ()
    assert len(left_out(scene)) == 9
    assert all("intrinsics.feather: is missing; restore it" in name for name in left_out(scene))


def test_a_damaged_sweep_leaves_the_rest_of_its_scene(log: Path) -> None:
    path = log / "sensors" / "lidar" / f"{NOW}.feather"
    path.write_bytes(path.read_bytes()[:300])
    scene = scene_at(log)
    (name,) = left_out(scene)
    assert name.startswith(f"sensor lidar ({path}: is cut short or damaged (")
    assert scene.lidar is None
    assert len(scene.cameras) == 9


def test_points_that_are_not_finite_are_left_out(log: Path) -> None:
    path = log / "sensors" / "lidar" / f"{NOW}.feather"
    change(path, lambda columns: columns["x"].__setitem__(slice(0, 3), np.inf))
    scene = scene_at(log)
    assert scene.lidar is not None
    assert len(scene.lidar.points) == 61
    assert left_out(scene) == {"LiDAR point that is not finite": 3}
    assert scene.provenance["lidars"] == '{"up_lidar": 29, "down_lidar": 32}'


def _intensities(log: Path, scale: float, kind: Any) -> list[float] | dict[str, int]:
    """The intensities of a sweep that holds them as `kind` after `scale`, or what is told of it."""
    path = log / "sensors" / "lidar" / f"{NOW}.feather"
    change(
        path, lambda columns: columns.update(intensity=(columns["intensity"].astype(np.float64) * scale).astype(kind))
    )
    scene = scene_at(log)
    return left_out(scene) if scene.lidar is None else scene.lidar.points[:, 3].tolist()


@pytest.mark.parametrize(("scale", "kind"), [(1.0, np.float32), (1 / 255, np.float32), (1 / 255, np.float64)])
def test_intensities_may_be_numbers_with_a_point(scale: float, kind: Any, made: Path, log: Path) -> None:
    published = scene_at(made).lidar
    assert published is not None
    assert _intensities(log, scale, kind) == pytest.approx(published.points[:, 3].tolist(), abs=1e-6)


def test_intensities_of_another_scale_cost_their_sweep(log: Path) -> None:
    ((name, count),) = dict(_intensities(log, 257, np.uint16)).items()  # type: ignore[arg-type]
    assert re.search(rf"{NOW}.feather: column intensity: holds \d{{5}}, not 0 to 255; fetch the published", name)
    assert count == 1


def test_annotations_without_a_row_are_none(log: Path) -> None:
    change(log / "annotations.feather", lambda columns: columns.update({k: v[:0] for k, v in columns.items()}))
    logged = found(log)
    assert logged.left_out["log without annotations"] == 1
    assert logged.left_out[f"table of annotations without a row ({log / 'annotations.feather'}); fetch it again"] == 1
    assert len(logged.frames) == 4
    assert scene_at(log).boxes is None


def test_quaternions_of_zeros_in_annotations_and_poses_are_counted(log: Path) -> None:
    whole = scene_at(log)

    def edit(columns: dict[str, Any]) -> None:
        row = np.flatnonzero(columns["timestamp_ns"] == NOW)[0]
        for key in ("qw", "qx", "qy", "qz"):
            columns[key][row] = 0.0

    change(log / "annotations.feather", edit)
    change(log / "city_SE3_egovehicle.feather", edit)
    scene, counts = scene_at(log), found(log).left_out
    assert left_out(scene) == {"box whose quaternion, centre, size, number of points or track is none": 1}
    assert scene.boxes is not None
    assert scene.boxes.labels == ("pedestrian",)
    (fault,) = [name for name in counts if name.startswith("pose whose quaternion or position is none")]
    assert counts[fault] == 1
    for one, other in zip(whole.cameras, scene.cameras, strict=True):
        np.testing.assert_allclose(one.extrinsic, other.extrinsic, atol=1e-3)


def test_poses_out_of_order_are_sorted_and_counted(log: Path) -> None:
    whole = scene_at(log)
    order = np.random.default_rng(0).permutation(len(read_poses(log).times))
    change(
        log / "city_SE3_egovehicle.feather",
        lambda columns: columns.update({name: values[order] for name, values in columns.items()}),
    )
    assert same(scene_at(log), whole)
    assert any(name.startswith("pose out of the order of time, sorted") for name in found(log).left_out)


def test_a_log_without_annotations_has_sensors_and_a_future(log: Path) -> None:
    (log / "annotations.feather").unlink()
    logged = found(log)
    assert logged.left_out["log without annotations"] == 1
    assert logged.left_out["drivable area of the map"] == 1
    assert len(logged.frames) == 4
    scene = scene_at(log)
    assert check_scene(scene) == []
    assert (scene.boxes, scene.surroundings, scene.caption, scene.questions) == (None, None, None, ())
    assert len(scene.cameras) == 9
    assert scene.lidar is not None
    assert scene.future is not None


@pytest.mark.parametrize(
    ("part", "named"),
    [("map", "log without a vector map"), ("sensors", "log without sweeps"), ("sensors", "log without images")],
)
def test_a_log_without_a_part_says_so(log: Path, part: str, named: str) -> None:
    shutil.rmtree(log / part)
    logged = found(log)
    assert logged.left_out[named] == 1
    scene = Argoverse(sweep="annotated").read_scene(logged.frames[-1])
    assert check_scene(scene) == []
    assert scene.surroundings is not None


def test_a_damaged_map_is_named_and_the_log_read(log: Path) -> None:
    (path,) = log.glob("map/log_map_archive_*")
    path.write_text(path.read_text()[:99])
    assert any(name.startswith(f"map that can't be read ({path}: ") for name in found(log).left_out)
    scene = scene_at(log)
    assert scene.surroundings is not None
    assert scene.surroundings.drivable == ()


@pytest.mark.parametrize("kept", [0, 200])
def test_annotations_that_cannot_be_read_cost_themselves_alone(log: Path, kept: int) -> None:
    path = log / "annotations.feather"
    path.write_bytes(path.read_bytes()[:kept])
    counts = found(log).left_out
    (fault,) = [name for name in counts if name.startswith(f"annotations that can't be read ({path}: ")]
    assert (counts[fault], counts["log without annotations"]) == (1, 1)
    scene = scene_at(log)
    assert check_scene(scene) == []
    assert (scene.boxes, scene.surroundings, len(scene.cameras)) == (None, None, 9)


def test_a_log_whose_poses_are_damaged_leaves_the_other_logs(log: Path) -> None:
    other = write_log(log.parent, "7c696054-aaaa-4000-8000-000000000002", seconds=0.5)
    path = other / "city_SE3_egovehicle.feather"
    path.write_bytes(path.read_bytes()[:200])
    logs = {one.name: one for one in Argoverse(sweep="annotated").find_logs(str(log.parent))}
    assert logs[other.name].frames == ()
    (name,) = logs[other.name].left_out
    assert name.startswith(f"log that can't be read ({path}: is cut short or damaged (")
    assert name.endswith("; restore it from the dataset)")
    assert len(logs[log.name].frames) == 21


def test_a_column_that_is_missing_is_named(log: Path) -> None:
    change(log / "city_SE3_egovehicle.feather", lambda columns: columns.pop("qz"))
    with pytest.raises(SceneError, match=r"can't be read .*city_SE3_egovehicle\.feather: column qz: is missing"):
        find_recordings(log.parent, {"argoverse": Argoverse(sweep="annotated")})


@pytest.mark.slow
def test_whole_folders_are_written_with_their_report(log: Path, tmp_path: Path) -> None:
    (log / FRONT / f"{START + 2 * SWEEP - 20_000_000}.jpg").write_bytes(b"")
    recordings = find_recordings(log.parent, {"argoverse": Argoverse(sweep="annotated")})
    summary = recordings.write(tmp_path / "shards", quiet=True)
    assert summary.records == 21
    assert summary.parts["cameras"] == 5
    assert summary.parts["lidar"] == 4
    assert summary.skipped == []
    assert summary.unmapped == {"SIGN": 21}
    assert any("has no bytes" in name for name in summary.dropped)
    assert summary.dropped["argoverse lane segment of the map"] == 2


def test_a_future_that_no_vehicle_drives_leaves_the_sensors(log: Path) -> None:
    def edit(columns: dict[str, Any]) -> None:
        columns["ty_m"] += 5.0 * (columns["timestamp_ns"] > NOW + 3 * SECOND)

    change(log / "city_SE3_egovehicle.feather", edit)
    scene = scene_at(log)
    assert left_out(scene) == {"future that no kinematic path follows": 1}
    assert scene.future is None
    assert len(scene.cameras) == 9
    argoverse._open.cache_clear()
    blind = next(path for path, now in found(log).frames if now == START + 2 * SECOND)
    with pytest.raises(SceneError, match="future: no kinematic path is within"):
        Argoverse(sweep="annotated").read_scene((blind, START + 2 * SECOND))


def test_a_camera_that_fails_in_the_middle_costs_no_moment(log: Path) -> None:
    whole = found(log)
    for path in (log / FRONT).iterdir():
        if int(path.stem) > START + SWEEP:
            path.unlink()
    assert found(log).frames == whole.frames
    assert len(scene_at(log, START + 4 * SWEEP).cameras) == 8


def test_times_far_from_every_image_show_no_camera(log: Path) -> None:
    scene = scene_at(log, START + 3 * SECOND)
    assert scene.cameras == ()
    assert len([name for name in left_out(scene) if "in the 0.1 s before the moment" in name]) == 9
