"""Faults of nuScenes' files cost what they concern, and are counted by table and field or by sensor."""

from __future__ import annotations

import io
import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from framework.data.sources.nuscenes import maps
from framework.data.sources.nuscenes.dataset import NuScenes
from framework.data.sources.nuscenes.join import read_tables
from framework.data.sources.nuscenes.moment import _motion, read_moment
from framework.data.sources.nuscenes.radar import read_radar
from framework.scene.check import check_scene
from framework.scene.types import Scene
from tests.data.scenes import same
from tests.data.sources.nuscenes_tree import SAMPLES, VERSION, radar_file, token, write_tree

PLACE = 5
"""The row of the key frame that tests look at."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the version."""
    return write_tree(tmp_path_factory.mktemp("nuscenes"))


@pytest.fixture
def copy(tree: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the version's folder that a test may damage."""
    for cache in (read_tables, _motion, maps.find_areas):
        cache.cache_clear()
    yield Path(shutil.copytree(tree.parent, tmp_path / "copy")) / VERSION
    read_tables.cache_clear()


def rows_of(folder: Path, table: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((folder / f"{table}.json").read_text())
    return rows


def write_rows(folder: Path, table: str, rows: list[Any]) -> None:
    (folder / f"{table}.json").write_text(json.dumps(rows))


def left_out(scene: Scene) -> dict[str, int]:
    """What a scene leaves out, but for what the whole tree does."""
    usual = ("box without a point", "radar return that is invalid")
    counts: dict[str, int] = json.loads(scene.provenance["dropped"])
    return {name: count for name, count in counts.items() if not name.startswith(usual)}


def frames_of(root: Path) -> dict[str, int]:
    return {log.name: len(log.frames) for log in NuScenes().find_logs(str(root)) if log.frames}


GONE = "gone"


@pytest.mark.parametrize(
    ("table", "place", "field", "value", "reason"),
    [
        ("sample_annotation", 3, "instance_token", "lost", "no row of instance.json that can be used"),
        ("sample_annotation", 3, "sample_token", "lost", "no row of sample.json that can be used"),
        ("sample_annotation", 3, "num_lidar_pts", GONE, "missing"),
        ("sample_annotation", 3, "num_lidar_pts", None, "no whole number"),
        ("sample_annotation", 3, "size", None, "no list of 3 positive numbers up to 100 m"),
        ("sample_annotation", 3, "size", [1.0, 0.0, 500.0], "no list of 3 positive numbers up to 100 m"),
        ("sample_annotation", 3, "rotation", None, "no list of 4 numbers"),
        ("sample_annotation", 3, "translation", "here", "no list of 3 numbers"),
        ("sample", 3, "timestamp", None, "no whole number"),
        ("sample", 3, "scene_token", 7, "no text"),
        ("sample_data", 3, "timestamp", None, "no whole number"),
        ("sample_data", 3, "sample_token", "lost", "no row of sample.json that can be used"),
        ("sample_data", 3, "prev", "lost", "no row of sample_data.json that can be used"),
        ("ego_pose", 3, "rotation", None, "no list of 4 numbers"),
        ("instance", 1, "category_token", None, "no text"),
        ("category", 1, "name", GONE, "missing"),
        ("log", 0, "location", None, "no text"),
        ("log", 0, "location", "../../boston", "no path in the dataset's folder"),
        ("scene", 1, "name", "/scene-0061", "no path in the dataset's folder"),
        ("scene", 1, "name", "scene-0061", "repeats that of an earlier row"),
    ],
)
@pytest.mark.slow
def test_a_row_that_cannot_be_used_is_counted_by_table_and_field(
    table: str, place: int, field: str, value: object, reason: str, copy: Path
) -> None:
    rows = rows_of(copy, table)
    rows[place] |= {field: value}
    if value == GONE:
        del rows[place][field]
    write_rows(copy, table, rows)
    counts = read_tables(str(copy)).left_out
    assert counts[f"{copy}/{table}.json: {field}: {reason}; unpack the metadata archive again"] == 1
    frames = frames_of(copy.parent)
    assert sum(frames.values()) >= SAMPLES
    assert frames["scene-0061"] >= SAMPLES - 1
    assert check_scene(read_moment(str(copy), SAMPLES - 8)) == []


@pytest.mark.parametrize(("table", "costs"), [("sample", 1), ("instance", 0), ("category", 0)])
@pytest.mark.fast_cases(1)
def test_a_row_that_is_not_there_costs_what_it_names(table: str, costs: int, copy: Path) -> None:
    rows = rows_of(copy, table)
    write_rows(copy, table, [*rows[:2], None, *rows[3:]])
    counts = read_tables(str(copy)).left_out
    assert counts[f"{copy}/{table}.json: row: no object; unpack the metadata archive again"] == 1
    assert sum("that can be used" in reason for reason in counts) >= 1
    assert sum(frames_of(copy.parent).values()) == 2 * SAMPLES - costs


def test_classes_and_instances_in_another_order_mean_the_same(copy: Path) -> None:
    before = read_moment(str(copy), PLACE).boxes
    for table in ("category", "instance", "sensor", "calibrated_sensor", "ego_pose"):
        write_rows(copy, table, rows_of(copy, table)[::-1])
    for cache in (read_tables, _motion):
        cache.cache_clear()
    assert same(read_moment(str(copy), PLACE).boxes, before)


def test_what_rows_leave_out_is_told_with_the_logs(copy: Path) -> None:
    rows = rows_of(copy, "sample_annotation")
    rows[0]["size"] = None
    write_rows(copy, "sample_annotation", rows)
    (log,) = (log for log in NuScenes().find_logs(str(copy.parent)) if not log.frames)
    assert log.left_out == {f"{copy}/sample_annotation.json: size: no list of 3 positive numbers up to 100 m; unpack "
                            "the metadata archive again": 1}  # fmt: skip


def test_a_repeated_sample_leaves_the_others_in_their_drives(copy: Path) -> None:
    rows = rows_of(copy, "sample")
    write_rows(copy, "sample", [rows[0], *rows])
    for log in NuScenes().find_logs(str(copy.parent)):
        for frame in log.frames:
            assert read_tables(str(copy)).drive_of[frame[1]] == log.name
    assert frames_of(copy.parent) == {"scene-0061": SAMPLES, "scene-0103": SAMPLES}
    assert read_moment(str(copy), SAMPLES + 1).provenance["log"] == "scene-0103"
    reason = f"{copy}/sample.json: token: repeats that of an earlier row; unpack the metadata archive again"
    assert read_tables(str(copy)).left_out == Counter({reason: 1})


def test_sweeps_out_of_order_cost_their_drive(copy: Path) -> None:
    rows = rows_of(copy, "sample_data")
    assert rows[1]["filename"].startswith("sweeps/LIDAR_TOP")
    rows[1]["timestamp"] = rows[0]["timestamp"]
    write_rows(copy, "sample_data", rows)
    tables = read_tables(str(copy))
    assert "sample_data.json: timestamp: LIDAR_TOP not ascending" in str(tables.drives["scene-0061"].fault)
    assert frames_of(copy.parent) == {"scene-0103": SAMPLES}


def test_a_camera_without_a_matrix_is_left_out_alone(copy: Path) -> None:
    rows = rows_of(copy, "calibrated_sensor")
    calibration = token("scene-0061", "CAM_BACK", "calibration")
    next(row for row in rows if row["token"] == calibration)["camera_intrinsic"] = None
    write_rows(copy, "calibrated_sensor", rows)
    scene = read_moment(str(copy), PLACE)
    assert len(scene.cameras) == 5
    (reason,) = left_out(scene)
    assert reason.startswith("sensor CAM_BACK (")
    assert "camera_intrinsic: no 3 x 3 matrix" in reason


def smaller(encoded: bytes) -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(encoded)).resize((80, 45)).save(file, "JPEG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("channel", "damage", "reason"),
    [
        ("CAM_BACK", lambda encoded: encoded[:-9], "is cut short; fetch it again"),
        ("CAM_BACK", smaller, "80 x 45 pixels, calibrated for 160 x 90"),
        ("CAM_BACK", lambda encoded: b"", "has no bytes"),
        ("CAM_BACK", None, "no such file in samples/CAM_BACK; fetch the blob that holds it"),
        ("RADAR_FRONT", None, "no such file in samples/RADAR_FRONT; fetch the blob that holds it"),
        ("RADAR_FRONT", lambda encoded: encoded[:-60], "POINTS: 9 rows of 43 bytes"),
    ],
)
@pytest.mark.fast_cases(2)
def test_a_sensors_file_costs_only_itself(channel: str, damage: Any, reason: str, copy: Path) -> None:
    before = read_moment(str(copy), PLACE)
    file = sorted((copy.parent / "samples" / channel).glob("*scene-0061*"))[PLACE]
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage(file.read_bytes()))
    scene = read_moment(str(copy), PLACE)
    ((told, count),) = left_out(scene).items()
    assert told.startswith(f"sensor {channel} (")
    assert (reason in told, count) == (True, 1)
    assert before.radar is not None
    assert scene.radar is not None
    assert len(scene.cameras) == (5 if channel == "CAM_BACK" else 6)
    assert (len(scene.radar.returns) < len(before.radar.returns)) == (channel == "RADAR_FRONT")
    assert check_scene(scene) == []


@pytest.mark.parametrize(("text", "reason"), [("{", "map that can't be read ("), (None, "map that is not there: ")])
def test_a_map_that_cannot_be_read_costs_only_the_drivable_area(
    text: str | None, reason: str, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = copy.parent / "maps" / "expansion" / "singapore-onenorth.json"
    if text is None:
        file.unlink()
    else:
        file.write_text(text)
    parsed: list[Path] = []
    monkeypatch.setattr(
        maps, "drivable_areas", lambda path, read=maps.drivable_areas: parsed.append(path) or read(path)
    )
    for place in (PLACE, PLACE + 1):
        _motion.cache_clear()
        scene = read_moment(str(copy), place)
        assert scene.surroundings is not None
        assert scene.surroundings.drivable == ()
        ((told, count),) = left_out(scene).items()
        assert (told.startswith(reason), count) == (True, 1)
    assert len(parsed) == (0 if text is None else 1)


@pytest.mark.fault("roads without an area")
@pytest.mark.parametrize(
    ("places", "said", "parts"),
    [
        ([(0, 0), (2, 1), (4, 2)], "that has no area (", 0),
        ([(3, 3)] * 4, "that has no area (", 0),
        ([(0, 0), (4, 4), (4, 0), (0, 4)], "that crosses itself, cut into its parts (", 2),
        ([(0, 0), (4, 4)], "that is no polygon (", 0),
        ([(0, 0), (4, 4), (math.nan, 0)], "that is no polygon (", 0),
    ],
)
def test_a_drivable_area_without_an_area_of_its_own_costs_itself(
    places: list[tuple[float, float]], said: str, parts: int, copy: Path
) -> None:
    file = copy.parent / "maps" / "expansion" / "singapore-onenorth.json"
    layers = json.loads(file.read_text())
    nodes = [{"token": f"odd {n}", "x": 600.0 + x, "y": 1600.0 + y} for n, (x, y) in enumerate(places)]
    layers["node"] += nodes
    layers["polygon"].append({"token": "odd", "exterior_node_tokens": [node["token"] for node in nodes], "holes": []})
    layers["drivable_area"].append({"token": "odd", "polygon_tokens": ["odd"]})
    whole = read_moment(str(copy), PLACE).surroundings
    file.write_text(json.dumps(layers))
    maps.find_areas.cache_clear()
    _motion.cache_clear()
    scene = read_moment(str(copy), PLACE)
    ((told, count),) = left_out(scene).items()
    assert (told.startswith(f"drivable area of the map {said}{file}"), count) == (True, 1)
    assert whole is not None
    assert scene.surroundings is not None
    assert len(scene.surroundings.drivable) == len(whole.drivable) + parts
    assert check_scene(scene) == []


def test_a_future_that_no_vehicle_drives_leaves_the_rest(copy: Path) -> None:
    now = rows_of(copy, "sample")[PLACE]["timestamp"]
    rows = rows_of(copy, "ego_pose")
    for row in rows:
        row["translation"][1] += 9.0 * (row["timestamp"] > now + 1_000_000)
    write_rows(copy, "ego_pose", rows)
    scene = read_moment(str(copy), PLACE)
    assert left_out(scene) == {"future that no kinematic path follows": 1}
    assert scene.future is None
    assert scene.history is not None
    assert len(scene.cameras) == 6


def test_sweeps_that_are_not_listed_leave_out_history_and_future_alone(copy: Path) -> None:
    now = rows_of(copy, "sample")[PLACE]["timestamp"]
    rows = rows_of(copy, "sample_data")
    sweeps = [row for row in rows if "LIDAR_TOP" in row["filename"]]
    lost = [row for row in sweeps if 100_000 < abs(row["timestamp"] - now) < 900_000]
    write_rows(copy, "sample_data", [row for row in rows if row not in lost])
    scene = read_moment(str(copy), PLACE)
    assert left_out(scene) == {"future that no kinematic path follows": 1, "history across a gap of the poses": 1}
    assert check_scene(scene) == []


def test_a_version_whose_blobs_are_elsewhere_hides_no_other(copy: Path) -> None:
    whole = copy.parent.rename(copy.parent.parent / "whole")
    metadata = copy.parent.parent / "metadata" / "v1.0-trainval"
    shutil.copytree(whole / VERSION, metadata)
    assert frames_of(copy.parent.parent) == {"scene-0061": SAMPLES, "scene-0103": SAMPLES}


def test_key_frames_of_tables_are_not_read_from_info_files_again(copy: Path) -> None:
    samples = [token("scene-0061", "sample", 3), "another"]
    entries = [{"token": each, "lidar_points": {"lidar_path": "drive__LIDAR_TOP__1.bin"}} for each in samples]
    (copy.parent / "info.json").write_text(json.dumps({"metainfo": {"dataset": "nuscenes"}, "data_list": entries}))
    log = list(NuScenes().find_logs(str(copy.parent)))[-1]
    assert log.frames == ((str(copy.parent / "info.json"), 1),)
    assert log.left_out == {"key frame of an info file that is read from elsewhere": 1}


def test_radar_returns_that_are_left_out_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "radar.pcd"
    whole = radar_file(np.random.default_rng(0), 9)
    path.write_bytes(whole)
    refused = "radar return that is invalid, ambiguous or of an object that stopped"
    returns, counts = read_radar(path)
    assert (len(returns), counts) == (6, {"radar return that is not finite": 0, refused: 3})
    start = whole.index(b"DATA binary\n") + len(b"DATA binary\n")
    broken = bytearray(whole)
    broken[start + 43 * 8 : start + 43 * 8 + 4] = np.float32(np.nan).tobytes()
    path.write_bytes(bytes(broken))
    fewer, counts = read_radar(path)
    np.testing.assert_array_equal(fewer, returns[:-1])
    assert counts == {"radar return that is not finite": 1, refused: 3}
    path.write_bytes(radar_file(np.random.default_rng(0), 0))
    returns, counts = read_radar(path)
    assert (len(returns), sum(counts.values())) == (0, 0)


def test_a_file_out_of_the_dataset_is_not_read(copy: Path) -> None:
    rows = rows_of(copy, "sample_data")
    row = next(row for row in rows if "/CAM_FRONT/" in row["filename"] and row["is_key_frame"])
    row["filename"] = "../../secret.jpg"
    write_rows(copy, "sample_data", rows)
    told = [what for log in NuScenes().find_logs(str(copy.parent)) for what in log.left_out]
    assert any("sample_data.json: filename: no path in the dataset's folder" in what for what in told)


def test_a_blob_that_is_fetched_later_writes_new_shards(tree: Path) -> None:
    files = {Path(file).relative_to(tree.parent).as_posix() for log in NuScenes().find_logs(str(tree.parent))
             for file in log.files}  # fmt: skip
    assert {"samples/CAM_FRONT", "samples/LIDAR_TOP"} <= files
    assert "sweeps/LIDAR_TOP" not in files, "whose points no scene has"
