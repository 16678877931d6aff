"""Points of a LiDAR, and returns of a radar, that are no place: they are left out and counted, and the rest is kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from framework.data.sources.base import RecordedDataset
from framework.data.sources.kitti.detection import Kitti
from framework.data.sources.kitti.tracking import KittiTracking
from framework.data.sources.nuscenes.dataset import NuScenes
from framework.data.sources.physical_ai.dataset import PhysicalAI
from framework.data.sources.points import BROKEN, read_points
from framework.scene.check import check_scene
from framework.scene.types import SceneError
from tests.data.sources import kitti_tree, nuscenes_tree, physical_ai_tree

POINTS = np.arange(40, dtype=np.float32).reshape(8, 5)


def _written(path: Path, points: np.ndarray) -> Path:
    points.astype("<f4").tofile(path)
    return path


def test_points_that_are_not_finite_are_left_out_and_counted(tmp_path: Path) -> None:
    points, counts = POINTS.copy(), {BROKEN: 1}
    points[[1, 4, 6], [0, 2, 3]] = np.nan, np.inf, -np.inf
    points[2, 4] = np.nan  # the ring, which nothing needs
    read = read_points(_written(tmp_path / "a.bin", points), 5, counts)
    np.testing.assert_array_equal(read, points[[0, 2, 3, 5, 7]])
    assert counts == {BROKEN: 4}


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [((slice(None), 0), np.nan, "no point is finite"), ((3, 1), 1e30, "is damaged, or its rows have not 5 numbers"),
     ((3, 3), -1e9, "or brighter than 65535")],
)  # fmt: skip
def test_a_sweep_of_other_bytes_is_told(place: tuple[object, int], value: float, said: str, tmp_path: Path) -> None:
    points = POINTS.copy()
    points[place] = value  # type: ignore[index]
    with pytest.raises(SceneError, match=rf"a\.bin: .*{said}.*; fetch it again"):
        read_points(_written(tmp_path / "a.bin", points), 5)


def _nuscenes(root: Path) -> tuple[RecordedDataset, list[Path], int]:
    nuscenes_tree.write_tree(root)
    return NuScenes(), sorted((root / "samples" / "LIDAR_TOP").iterdir()), 5


def _kitti(root: Path) -> tuple[RecordedDataset, list[Path], int]:
    return Kitti(), sorted((kitti_tree.write_object(root, (0,)) / "velodyne").iterdir()), 4


def _tracking(root: Path) -> tuple[RecordedDataset, list[Path], int]:
    return KittiTracking(), sorted((kitti_tree.write_tracking(root, (0,)) / "velodyne" / "0000").iterdir()), 4


@pytest.mark.parametrize("write", [_nuscenes, _kitti, _tracking], ids=["nuscenes", "kitti", "tracking"])
def test_a_point_that_is_no_place_costs_itself_alone(write: object, tmp_path: Path) -> None:
    dataset, sweeps, channels = write(tmp_path / "tree")  # type: ignore[operator]
    for sweep in sweeps:
        points = np.fromfile(sweep, dtype="<f4").reshape(-1, channels)
        points[3, 1] = np.nan
        _written(sweep, points)
    log = next(log for log in dataset.find_logs(str(tmp_path)) if log.frames)
    scene = dataset.read_scene(log.frames[len(log.frames) // 2])
    assert check_scene(scene) == []
    assert scene.lidar is not None
    assert len(scene.lidar.points) == len(points) - 1
    assert json.loads(scene.provenance["dropped"])[BROKEN] == 1


def test_a_return_of_a_radar_that_is_no_number_is_counted(tmp_path: Path) -> None:
    name = next(name for name, (chunk, _) in physical_ai_tree.CLIPS.items() if chunk)
    folder = physical_ai_tree.write_download(tmp_path)
    radar = next(iter(physical_ai_tree.RADARS))
    path = folder / f"radar/{radar}/{name}.{radar}.parquet"
    table = parquet.read_table(path)
    strengths = np.full(len(table), np.nan)
    parquet.write_table(table.set_column(table.schema.get_field_index("rcs"), "rcs", pa.array(strengths)), path)
    log = next(log for log in PhysicalAI().find_logs(str(tmp_path)) if log.name == name)
    scene = PhysicalAI().read_scene(log.frames[2])
    assert check_scene(scene) == []
    assert scene.radar is not None
    assert len(scene.radar.returns) == 6
    assert json.loads(scene.provenance["dropped"])["radar return that is not finite"] == 6
