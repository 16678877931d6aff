"""A calibration of another rig costs its sensor alone, and is told with file, field and remedy."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import feather, parquet

from framework.data.sources.argoverse import Argoverse
from framework.data.sources.base import RecordedDataset
from framework.data.sources.kitti.raw import KittiRaw
from framework.data.sources.lerobot.dataset import LeRobot
from framework.data.sources.lerobot.write import write_lerobot
from framework.data.sources.nuscenes.dataset import NuScenes
from framework.data.sources.nuscenes.tables import LIDAR
from framework.data.sources.physical_ai.dataset import PhysicalAI
from framework.scene.check import check_scene
from framework.scene.types import Scene
from tests.data.sources import argoverse_tree, kitti_tree, lerobot_tree, nuscenes_tree, physical_ai_tree
from tests.data.sources.later import forget_files

FAR = 1000.0
"""A place (m) on no vehicle."""
Damage = Callable[[Path], None]


def _nuscenes(channel: str, **changes: object) -> Damage:
    def damage(root: Path) -> None:
        path = root / nuscenes_tree.VERSION / "calibrated_sensor.json"
        rows = json.loads(path.read_text())
        for scene in nuscenes_tree.SCENES:
            token = nuscenes_tree.token(scene, channel, "calibration")
            next(row for row in rows if row["token"] == token).update(changes)
        path.write_text(json.dumps(rows))

    return damage


def _of_table(read: Any, write: Any, place: str, column: str, row: int, value: float) -> Damage:
    """Sets a value of each table at a place."""

    def damage(root: Path) -> None:
        for path in root.glob(place):
            table = read(path)
            values = table[column].to_numpy().copy()
            values[row] = value
            table = table.set_column(table.schema.get_field_index(column), column, pa.array(values))
            path.unlink()
            write(table, path)

    return damage


def _argoverse(table: str, column: str, value: float) -> Damage:
    """Of the first camera, which is the front one."""
    return _of_table(
        lambda path: feather.read_table(path, memory_map=False), feather.write_feather,
        f"*/calibration/{table}.feather", column, 0, value,
    )  # fmt: skip


def _physical_ai(table: str, column: str, value: float) -> Damage:
    """Of the first camera of each chunk's first clip."""
    return _of_table(
        parquet.read_table, parquet.write_table, f"physical_ai/calibration/{table}/*.parquet", column, 0, value
    )


def _kitti(root: Path) -> None:
    (path,) = root.glob("*/calib_cam_to_cam.txt")
    place = f"P_rect_02: {kitti_tree.numbers(kitti_tree.projection(2))}"
    moved = kitti_tree.projection(2)
    moved[0, 3] = -FAR * moved[0, 0]
    text = path.read_text()
    assert place in text
    path.write_text(text.replace(place, f"P_rect_02: {kitti_tree.numbers(moved)}"))


def _lerobot(change: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(root: Path) -> None:
        path = root / "made" / "meta" / "info.json"
        info = json.loads(path.read_text())
        change(info["features"]["observation.images.front"])
        path.write_text(json.dumps(info))

    return damage


def _cut_intrinsic(feature: dict[str, Any]) -> None:
    feature["info"]["calibration"]["intrinsic"][0][2] = 5000.0


def _without_intrinsic(feature: dict[str, Any]) -> None:
    del feature["info"]["calibration"]["intrinsic"]


def _another_size(feature: dict[str, Any]) -> None:
    feature["shape"] = [480, 640, 3]


CLIP = next(iter(physical_ai_tree.CLIPS))
MATRIX = [[1266.0, 0.0, 816.0], [0.0, 1266.0, 491.0], [0.0, 0.0, 1.0]]
TREES: dict[str, tuple[RecordedDataset, Callable[[Path], object]]] = {
    "nuscenes": (NuScenes(), nuscenes_tree.write_tree),
    "argoverse": (Argoverse(), lambda root: argoverse_tree.write_log(root, seconds=5.4)),
    "physical_ai": (PhysicalAI(), lambda root: physical_ai_tree.write_download(root, {CLIP: (0, "val")})),
    "kitti": (KittiRaw(), lambda root: kitti_tree.write_raw(root, (kitti_tree.STRAIGHT,), 4)),
    "lerobot": (
        LeRobot(), lambda root: write_lerobot(lerobot_tree.scenes(1), root / "made", lerobot_tree.RATE)
    ),
}  # fmt: skip


def _first_scene(dataset: RecordedDataset, root: Path) -> Scene:
    """The scene of a moment at which all sensors have measured."""
    forget_files()
    log = next(log for log in dataset.find_logs(str(root)) if log.frames)
    return dataset.read_scene(log.frames[min(3, len(log.frames) - 1)])


@pytest.mark.parametrize(
    ("tree", "damage", "sensor", "told"),
    [
        ("nuscenes", _nuscenes("CAM_FRONT", camera_intrinsic=MATRIX), "front",
         r"sensor CAM_FRONT \(.*/calibrated_sensor.json: \w+ \(front\).intrinsic: principal point \(816.0, 491.0\) is "
         r"outside the image of 160 x 90; scale"),
        ("nuscenes", _nuscenes("CAM_BACK", translation=[FAR, 0, 0]), "back",
         r"calibrated_sensor.json: \w+ \(back\).extrinsic: the sensor is farther than 100 m from the ego; check"),
        ("nuscenes", _nuscenes(LIDAR, rotation=[0, 0, 0, 0]), LIDAR,
         r"sensor LIDAR_TOP \(.*/calibrated_sensor.json: \w+: rotation: \[0, 0, 0, 0\] is no unit quaternion; unpack"),
        ("nuscenes", _nuscenes(LIDAR, translation=[FAR, 0, 0]), LIDAR,
         r"calibrated_sensor.json: \w+: the sensor is farther than 100 m from the ego"),
        ("argoverse", _argoverse("intrinsics", "cx_px", 5000.0), "ring_front_center",
         r"/calibration \(ring_front_center\).intrinsic: principal point \(5000.0, .* is outside the image of 62 x 82"),
        ("argoverse", _argoverse("egovehicle_SE3_sensor", "tx_m", FAR), "ring_front_center",
         r"/calibration \(ring_front_center\).extrinsic: the sensor is farther than 100 m"),
        ("physical_ai", _physical_ai("camera_intrinsics", "cx", 960.0), "camera_front_wide_120fov",
         r"camera_intrinsics \(.*120fov\).intrinsic: principal point \(960.0, .* outside the image of 64 x 48; scale"),
        ("physical_ai", _physical_ai("camera_intrinsics", "width", 1920.0), "camera_front_wide_120fov",
         r"camera_front_wide_120fov.mp4: 64 x 48 pixels, calibrated for 1920 x 48; restore"),
        ("physical_ai", _physical_ai("sensor_extrinsics", "x", FAR), "camera_front_wide_120fov",
         r"camera_intrinsics \(.*\).extrinsic: the sensor is farther than 100 m"),
        ("kitti", _kitti, "front", r"calib_cam_to_cam.txt: P_rect_02 \(front\).extrinsic: the sensor is farther than"),
        ("lerobot", _lerobot(_cut_intrinsic), "front",
         r"meta/info.json: features.observation.images.front.info.calibration \(front\).intrinsic: principal point"),
        ("lerobot", _lerobot(_without_intrinsic), "front", r"meta/info.json: KeyError\('intrinsic'\): is damaged or"),
        ("lerobot", _lerobot(_another_size), "front",
         r"observation.images.front of row \d+: 64 x 48 pixels, calibrated for 640 x 480; restore"),
    ],
)  # fmt: skip
@pytest.mark.fast_cases(3)
def test_a_calibration_of_another_rig_costs_its_sensor_alone(
    tree: str, damage: Damage, sensor: str, told: str, tmp_path: Path
) -> None:
    dataset, write = TREES[tree]
    write(tmp_path)
    whole = _first_scene(dataset, tmp_path)
    damage(tmp_path)
    scene = _first_scene(dataset, tmp_path)
    assert check_scene(scene) == []
    lost = {camera.name for camera in whole.cameras} - {camera.name for camera in scene.cameras}
    assert lost == ({sensor} - {LIDAR})
    assert (scene.lidar is None) == (whole.lidar is None or sensor == LIDAR)
    (reason,) = (name for name in json.loads(scene.provenance["dropped"]) if re.search(told, name))
    assert json.loads(scene.provenance["dropped"])[reason] == 1
