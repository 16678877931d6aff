"""An annotation of a size or a place that no object has costs itself, not the scene."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import feather, ipc, parquet

from framework.data.sources.argoverse import FAULTY_BOX, Argoverse
from framework.data.sources.base import RecordedDataset
from framework.data.sources.forecasting import Forecasting
from framework.data.sources.kitti.tracking import KittiTracking
from framework.data.sources.nuscenes.dataset import NuScenes
from framework.data.sources.physical_ai.dataset import PhysicalAI
from framework.data.sources.py123d.dataset import Py123D
from framework.data.sources.tracks import FAR_BOX
from framework.scene.check import are_extents, check_scene
from tests.data.sources import argoverse_tree, forecasting_tree, kitti_tree, nuscenes_tree, physical_ai_tree
from tests.data.sources.formats import write_py123d

SCENARIO = "0a1e6f0a-1817-4a98-b02e-000000000000"


def _argoverse(root: Path, place: float, size: float) -> None:
    path = argoverse_tree.write_log(root) / "annotations.feather"
    table = feather.read_table(path, memory_map=False)
    rows = table.to_pylist()
    row = next(row for row in rows if row["timestamp_ns"] == argoverse_tree.START + 2 * argoverse_tree.SWEEP)
    row["tx_m"] += place
    row["length_m"] *= size
    feather.write_feather(pa.Table.from_pylist(rows, table.schema), path, compression="uncompressed")


def _nuscenes(root: Path, place: float, size: float) -> None:
    path = nuscenes_tree.write_tree(root) / "sample_annotation.json"
    rows = json.loads(path.read_text())
    row = next(row for row in rows if row["sample_token"] == nuscenes_tree.token("scene-0061", "sample", 6))
    row["translation"][0] += place
    row["size"][1] *= size
    path.write_text(json.dumps(rows))


def _kitti(root: Path, place: float, size: float) -> None:
    path = kitti_tree.write_tracking(root, (0,)) / "label_02" / "0000.txt"
    lines = path.read_text().splitlines()
    number = next(number for number, line in enumerate(lines) if line.startswith("20 0 "))
    words = lines[number].split()
    words[12], words[15] = str(float(words[12]) * size), str(float(words[15]) + place)
    path.write_text("\n".join([*lines[:number], " ".join(words), *lines[number + 1 :]]) + "\n")


def _physical_ai(root: Path, place: float, size: float) -> None:
    name = next(name for name, (chunk, _) in physical_ai_tree.CLIPS.items() if chunk)
    path = physical_ai_tree.write_download(root) / f"labels/obstacle.offline/{name}.obstacle.offline.parquet"
    rows = parquet.read_table(path).to_pylist()
    row = next(row for row in rows if (row["track_id"], row["timestamp_us"]) == ("0", 2_400_000))
    row["center_x"] += place
    row["size_x"] *= size
    parquet.write_table(pa.Table.from_pylist(rows), path)


def _forecasting(root: Path, place: float, size: float) -> None:
    path = forecasting_tree.write_scenario(root, SCENARIO) / f"scenario_{SCENARIO}.parquet"
    rows = parquet.read_table(path).to_pylist()
    row = next(row for row in rows if (row["track_id"], row["timestep"]) == ("0", 40))
    row["position_x"] += place
    parquet.write_table(pa.Table.from_pylist(rows), path)


def _py123d(root: Path, place: float, size: float) -> None:
    write_py123d(root)
    path = root / "logs/nuplan_train/log_a/box_detections_se3.arrow"
    table = ipc.open_file(pa.py_buffer(path.read_bytes())).read_all()
    rows = table.to_pylist()
    for row in rows:
        boxes = row["box_detections_se3.bounding_box_se3"]
        boxes[:1] = [[box[0] + place, *box[1:7], box[7] * size, *box[8:]] for box in boxes[:1]]
    written = io.BytesIO()
    with ipc.new_file(written, table.schema) as file:
        file.write_table(pa.Table.from_pylist(rows, table.schema))
    path.write_bytes(written.getvalue())


FORMATS: dict[str, tuple[RecordedDataset, Callable[[Path, float, float], None], tuple[str, str]]] = {
    "argoverse": (Argoverse(sweep="annotated"), _argoverse, (FAULTY_BOX, FAULTY_BOX)),
    "nuscenes": (NuScenes(), _nuscenes, (FAR_BOX, "sample_annotation.json: size: no list of 3 positive numbers up to")),
    "kitti_tracking": (KittiTracking(), _kitti, ("x, y or z: is beyond 1000 m", "is not positive, or beyond 100 m")),
    "physical_ai": (PhysicalAI(), _physical_ai, ("centre or size is none", "centre or size is none")),
    "forecasting": (Forecasting(), _forecasting, (FAR_BOX, "")),
    "py123d": (Py123D(), _py123d, (FAR_BOX, "centre or size is none")),
}
"""By format its reader, what writes a tree with one box that is moved (m) and stretched, and what counts it where it is
moved, or stretched."""
LARGE = ("nuscenes", "physical_ai", "py123d")
"""Formats whose trees take seconds."""
CASES: list[Any] = [
    pytest.param(name, place, size, marks=pytest.mark.slow) if name in LARGE else (name, place, size)
    for name in FORMATS
    for place, size in ((5000.0, 1.0), (1e12, 1.0), (0.0, 1000.0), (0.0, 1e-9))
    if (name, place) != ("forecasting", 0.0)
]


@pytest.mark.parametrize(("name", "place", "size"), CASES)
@pytest.mark.fast_cases(3)
def test_an_absurd_box_costs_itself_and_is_counted(name: str, place: float, size: float, tmp_path: Path) -> None:
    dataset, write, said = FORMATS[name]
    write(tmp_path, place, size)
    counts: Counter[str] = Counter()
    for log in dataset.find_logs(str(tmp_path)):
        counts.update(log.left_out)
        for scene in (dataset.read_scene(frame) for frame in log.frames):
            assert check_scene(scene) == []
            counts.update(json.loads(scene.provenance.get("dropped", "{}")))
    assert sum(count for what, count in counts.items() if said[place == 0.0] in what) >= 1


def test_a_row_that_is_nowhere_leaves_its_scenario(tmp_path: Path) -> None:
    path = forecasting_tree.write_scenario(tmp_path, SCENARIO) / f"scenario_{SCENARIO}.parquet"
    table = parquet.read_table(path)
    for column, row in (("position_x", 150), ("heading", 260), ("velocity_x", 370)):
        values = table[column].to_numpy().copy()
        values[row] = np.inf if column == "velocity_x" else np.nan
        table = table.set_column(table.schema.get_field_index(column), column, pa.array(values))
    parquet.write_table(table, path)
    (log,) = Forecasting().find_logs(str(tmp_path))
    assert log.left_out[f"row whose position or heading is none ({path})"] == 2
    assert log.frames
    assert all(check_scene(Forecasting().read_scene(frame)) == [] for frame in log.frames)


def test_extents_are_those_that_scenes_may_have() -> None:
    centres = np.array([[0.0, 0, 0], [999, -999, 0], [1001, 0, 0], [np.nan, 0, 0], [0, 0, 0], [0, 0, 0]])
    sizes = np.array([[4.0, 2, 1], [99, 0.01, 1], [4, 2, 1], [4, 2, 1], [101, 2, 1], [4, 0, 1]])
    assert are_extents(centres, sizes).tolist() == [True, True, False, False, False, False]
    assert are_extents(centres[2:3], sizes[2:3], farthest=2000.0).all()
