"""Two objects under one name at one time: one is left out and counted, and nothing else of the scenes changes."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import feather, ipc, parquet

from framework.data.sources.argoverse import Argoverse
from framework.data.sources.base import RecordedDataset
from framework.data.sources.forecasting import Forecasting
from framework.data.sources.kitti.tracking import KittiTracking
from framework.data.sources.nuscenes.dataset import NuScenes
from framework.data.sources.physical_ai.dataset import PhysicalAI
from framework.data.sources.py123d.dataset import Py123D
from framework.data.sources.tracks import LEAP, once_a_time, without_leaps
from framework.scene.check import check_scene
from framework.scene.types import Scene
from tests.data.scenes import same
from tests.data.sources import argoverse_tree, forecasting_tree, kitti_tree, nuscenes_tree, physical_ai_tree
from tests.data.sources.formats import write_py123d

AWAY = 90.0
"""How far (m) the other object of the same name is."""


def _again(rows: list[dict[str, Any]], is_meant: Callable[[dict[str, Any]], bool], axis: str) -> list[dict[str, Any]]:
    """Rows with another one before each that is meant, which is elsewhere."""
    doubled: list[dict[str, Any]] = []
    for row in rows:
        if is_meant(row):
            doubled.append({**row, axis: row[axis] + AWAY})
        doubled.append(row)
    return doubled


def _argoverse(root: Path) -> None:
    path = argoverse_tree.write_log(root) / "annotations.feather"
    table = feather.read_table(path, memory_map=False)
    at = argoverse_tree.START + 2 * argoverse_tree.SWEEP
    rows = _again(table.to_pylist(), lambda row: row["timestamp_ns"] == at and row["track_uuid"][7] == "0", "ty_m")
    feather.write_feather(pa.Table.from_pylist(rows, table.schema), path, compression="uncompressed")


def _nuscenes(root: Path) -> None:
    path = nuscenes_tree.write_tree(root) / "sample_annotation.json"
    rows = json.loads(path.read_text())
    row = next(row for row in rows if row["sample_token"] == nuscenes_tree.token("scene-0061", "sample", 6))
    x, y, z = row["translation"]
    rows.insert(0, {**row, "token": "another", "translation": [x + AWAY, y, z]})
    path.write_text(json.dumps(rows))


def _kitti(root: Path) -> None:
    path = kitti_tree.write_tracking(root, (0,)) / "label_02" / "0000.txt"
    lines = path.read_text().splitlines()
    place = next(place for place, line in enumerate(lines) if line.startswith("20 0 "))
    words = lines[place].split()
    words[15] = str(float(words[15]) + AWAY)
    path.write_text("\n".join([*lines[:place], " ".join(words), *lines[place:]]) + "\n")


def _physical_ai(root: Path) -> None:
    name = next(name for name, (chunk, _) in physical_ai_tree.CLIPS.items() if chunk)
    folder = physical_ai_tree.write_download(root)
    path = folder / f"labels/obstacle.offline/{name}.obstacle.offline.parquet"
    rows = parquet.read_table(path).to_pylist()
    rows = _again(rows, lambda row: (row["track_id"], row["timestamp_us"]) == ("0", 2_400_000), "center_y")
    parquet.write_table(pa.Table.from_pylist(rows), path)


def _forecasting(root: Path) -> None:
    name = "0a1e6f0a-1817-4a98-b02e-000000000000"
    path = forecasting_tree.write_scenario(root, name) / f"scenario_{name}.parquet"
    rows = parquet.read_table(path).to_pylist()
    rows = _again(rows, lambda row: (row["track_id"], row["timestep"]) == ("0", 40), "position_y")
    parquet.write_table(pa.Table.from_pylist(rows), path)


def _py123d(root: Path) -> None:
    write_py123d(root)
    path = root / "logs/nuplan_train/log_a/box_detections_se3.arrow"
    table = ipc.open_file(pa.py_buffer(path.read_bytes())).read_all()
    rows = table.to_pylist()
    for name, value in rows[24].items():
        if isinstance(value, list) and value:
            rows[24][name] = [value[0], *value]
    place = list(rows[24]["box_detections_se3.bounding_box_se3"][0])
    rows[24]["box_detections_se3.bounding_box_se3"][0] = [place[0], place[1] + AWAY, *place[2:]]
    written = io.BytesIO()
    with ipc.new_file(written, table.schema) as file:
        file.write_table(pa.Table.from_pylist(rows, table.schema))
    path.write_bytes(written.getvalue())


FORMATS: dict[str, tuple[RecordedDataset, Callable[[Path], None], Callable[[Path], Any], str]] = {
    "argoverse": (
        Argoverse(sweep="annotated"), _argoverse, argoverse_tree.write_log,
        "box whose track_uuid names another box of the same time (annotations.feather)"),
    "nuscenes": (
        NuScenes(), _nuscenes, nuscenes_tree.write_tree,
        "sample_annotation.json: instance_token: names another box of its sample; unpack the metadata archive again"),
    "kitti_tracking": (
        KittiTracking(), _kitti, lambda root: kitti_tree.write_tracking(root, (0,)),
        "label whose track_id names another object of its frame ("),
    "physical_ai": (
        PhysicalAI(), _physical_ai, physical_ai_tree.write_download,
        "obstacle whose track_id names another one of the same time"),
    "forecasting": (
        Forecasting(), _forecasting,
        lambda root: forecasting_tree.write_scenario(root, "0a1e6f0a-1817-4a98-b02e-000000000000"),
        "row whose track_id names another row of its timestep ("),
    "py123d": (
        Py123D(), _py123d, write_py123d,
        "box whose track_token names another box of the same time (box_detections_se3.arrow)"),
}  # fmt: skip
"""By format its reader, what writes a tree with two objects of one name, what writes the same tree without, and what
counts the object that is left out."""
LARGE = ("nuscenes", "physical_ai", "py123d")
"""Formats whose trees take seconds."""


def _read(dataset: RecordedDataset, root: Path) -> tuple[dict[str, Scene], Counter[str]]:
    """The first log's scenes that can be written, by id, and all that is left out."""
    scenes: dict[str, Scene] = {}
    counts: Counter[str] = Counter()
    for log in dataset.find_logs(str(root)):
        counts.update(log.left_out)
        for scene in (dataset.read_scene(frame) for frame in log.frames):
            counts.update(json.loads(scene.provenance.get("dropped", "{}")))
            if not check_scene(scene):
                scenes[scene.id] = replace(scene, provenance={})
    return scenes, counts


@pytest.mark.fault("two objects of one name")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in FORMATS]
)
def test_one_of_two_objects_of_one_name_is_left_out_and_the_scenes_are_kept(name: str, tmp_path: Path) -> None:
    dataset, write_doubled, write_whole, said = FORMATS[name]
    for part, write in (("whole", write_whole), ("doubled", write_doubled)):
        (tmp_path / part).mkdir()
        write(tmp_path / part)
    whole, counts = _read(dataset, tmp_path / "whole")
    scenes, doubled = _read(dataset, tmp_path / "doubled")
    assert scenes.keys() == whole.keys()
    assert all(same(scenes[each], whole[each]) for each in whole)
    assert not any(said in what for what in counts)
    assert sum(count for what, count in doubled.items() if said in what) == 1


def test_a_track_goes_on_where_it_is_nearest_to_where_it_was() -> None:
    times = np.array([0, 0, 1, 1, 1, 2, 3, 3])
    track = np.array([0, 1, 1, 0, 0, 0, 0, 0])
    x = np.array([5.0, 0.0, 0.5, 50.0, 6.0, 7.0, 8.0, 8.5])
    once = once_a_time(times, track, np.stack([x, 0 * x, 0 * x], axis=1))
    assert once.tolist() == [True, True, True, False, True, True, True, False]


def test_a_velocity_that_no_road_user_has_is_unknown_and_counted() -> None:
    counts: dict[str, int] = {}
    velocities = np.array([[3.0, 4.0, 0.0], [900.0, 0.0, 0.0], [np.nan] * 3])
    np.testing.assert_array_equal(without_leaps(velocities, counts)[:, 0], [3.0, np.nan, np.nan])
    assert counts == {LEAP: 1}


@pytest.mark.fault("two objects of one name")
@pytest.mark.slow
def test_a_track_that_leaps_costs_its_velocities_alone(tmp_path: Path) -> None:
    """The second half of a track is another object's, far away."""
    log = argoverse_tree.write_log(tmp_path)
    whole, _ = _read(Argoverse(sweep="annotated"), tmp_path)
    table = feather.read_table(log / "annotations.feather", memory_map=False)
    at = argoverse_tree.START + 2 * argoverse_tree.SWEEP
    rows = table.to_pylist()
    for row in rows:
        row["ty_m"] += 2 * AWAY * (row["track_uuid"][7] == "0" and row["timestamp_ns"] >= at)
    other = Path(shutil.move(log, tmp_path / "other" / log.name))
    feather.write_feather(pa.Table.from_pylist(rows, table.schema), other / "annotations.feather")
    scenes, counts = _read(Argoverse(sweep="annotated"), tmp_path)
    assert scenes.keys() == whole.keys()
    assert counts[LEAP] > 0
