"""Nothing of an Argoverse 2 log is silently dropped: what scenes have and what the report names add up to what a walk
over its folder counts, however the log varies.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import feather

from framework.data.sources import argoverse
from framework.data.sources.argoverse import Argoverse
from framework.data.sources.argoverse_log import UP_LASERS
from framework.data.sources.base import RecordedLog
from framework.scene.check import check_scene
from framework.scene.types import Scene
from tests.data.sources.argoverse_tree import SECOND, START, SWEEP, write_log

TABLES = {
    "annotations.feather": "timestamp_ns track_uuid category num_interior_pts qw qx qy qz tx_m ty_m tz_m length_m "
    "width_m height_m",
    "city_SE3_egovehicle.feather": "timestamp_ns qw qx qy qz tx_m ty_m tz_m",
    "calibration/intrinsics.feather": "sensor_name fx_px fy_px cx_px cy_px width_px height_px k1 k2 k3",
    "calibration/egovehicle_SE3_sensor.feather": "sensor_name qw qx qy qz tx_m ty_m tz_m",
}
"""The published columns."""


def held(log: Path) -> Counter[str]:
    """What a log holds, by a walk of its own: files, images, sweeps, boxes, poses, columns, calibrations, the map."""
    counts: Counter[str] = Counter()
    for place, _, names in os.walk(log, followlinks=True):
        for name in names:
            path = Path(place, name).relative_to(log)
            if path.parent.parent.as_posix() == "sensors/cameras" and re.fullmatch(r"[1-9]\d{0,18}\.jpg", name):
                counts[f"image {path.parent.name}"] += 1
            elif path.parent.as_posix() == "sensors/lidar" and re.fullmatch(r"[1-9]\d{0,18}\.feather", name):
                counts["sweep"] += 1
            elif path.as_posix() not in TABLES and path != _map_of(log):
                counts["file"] += 1
    for file, names in TABLES.items():
        if (log / file).is_file():
            table = feather.read_table(log / file, memory_map=False)
            counts[f"row of {file}"] += table.num_rows
            counts["column"] += len(set(table.schema.names) - set(names.split()))
    archive = _map_of(log)
    if archive is not None:
        counts.update({f"map {name}": len(layer) for name, layer in json.loads((log / archive).read_text()).items()})
    return Counter({name: count for name, count in counts.items() if count})


def _map_of(log: Path) -> Path | None:
    return next((path.relative_to(log) for path in sorted(log.glob("map/log_map_archive_*.json"))), None)


def told(log: Path, logged: RecordedLog, scenes: Sequence[Scene]) -> Counter[str]:
    """What scenes have and the report names, by the names of `held`."""
    counts: Counter[str] = Counter()
    sweeps: set[int] = set()
    images: set[tuple[str, int]] = set()
    faulty: dict[str, int] = {}
    for scene in scenes:
        now = int(scene.provenance["timestamp"])
        for camera in scene.cameras:
            images |= {(camera.name, now + round(age * SECOND)) for age in camera.times}
        if scene.boxes is not None:
            counts["row of annotations.feather"] += len(scene.boxes)
        for name, count in json.loads(scene.provenance.get("dropped", "{}")).items():
            if name in (argoverse.FAULTY_BOX, argoverse.REPEATED_BOX):
                counts["row of annotations.feather"] += count
            if damaged := re.search(r"sensors/cameras/([^/]+)/(\d+)\.jpg: ", name):
                images.add((damaged[1], int(damaged[2])))
            if repeated := re.search(r"(\d+) rows \S+; restore", name):
                faulty[name] = int(repeated[1])
            if damaged := re.search(r"sensors/lidar/(\d+)\.feather: ", name):
                sweeps.add(int(damaged[1]))
        counts["row of annotations.feather"] += sum(json.loads(scene.provenance.get("unmapped", "{}")).values())
        if scene.lidar is not None:
            sweeps.add(now)
    counts.update(Counter(f"image {name}" for name, _ in images))
    counts["sweep"] += len(sweeps)
    counts["row of calibration/intrinsics.feather"] += sum(faulty.values())
    counts["row of calibration/egovehicle_SE3_sensor.feather"] += len(faulty)
    poses = feather.read_table(log / "city_SE3_egovehicle.feather", memory_map=False)
    counts["row of city_SE3_egovehicle.feather"] = len(
        {row["timestamp_ns"] for row in poses.to_pylist() if any(row[name] for name in ("qw", "qx", "qy", "qz"))}
    )
    for name, count in logged.left_out.items():
        if name.startswith("file that is not read"):
            counts["file"] += count
        elif unseen := re.fullmatch(r"image of (.*) that no scene shows", name):
            counts[f"image {unseen[1]}"] += count
        elif name == "sweep that no scene has":
            counts["sweep"] += count
        elif name == "box at a moment that becomes no scene":
            counts["row of annotations.feather"] += count
        elif re.match("pose whose|pose of a time", name):
            counts["row of city_SE3_egovehicle.feather"] += count
        elif name.startswith("column of "):
            counts["column"] += count
        elif layer := re.fullmatch(r"(.*) of the map", name):
            counts[f"map {layer[1].replace(' ', '_')}s"] += count
        elif name.startswith("k1, k2 and k3"):
            counts["row of calibration/intrinsics.feather"] += count
            counts["row of calibration/egovehicle_SE3_sensor.feather"] += count
        elif name.startswith("place of "):
            counts["row of calibration/egovehicle_SE3_sensor.feather"] += count
    if any(scene.surroundings is not None for scene in scenes):
        counts["map drivable_areas"] = len(argoverse._open(str(log)).areas)
    return Counter({name: count for name, count in counts.items() if count})


def change(path: Path, edit: Callable[[pa.Table], pa.Table], **options: Any) -> None:
    table = edit(feather.read_table(path, memory_map=False))
    path.unlink()
    feather.write_feather(table, path, **options)


def _every_table(log: Path, edit: Callable[[pa.Table], pa.Table], **options: Any) -> None:
    for path in log.rglob("*.feather"):
        change(path, edit, **options)


def _as(kinds: dict[str, pa.DataType]) -> Callable[[pa.Table], pa.Table]:
    def cast(table: pa.Table) -> pa.Table:
        for name in set(kinds) & set(table.schema.names):
            table = table.set_column(
                table.schema.get_field_index(name), name, table[name].cast(kinds[name], safe=False)
            )
        return table

    return cast


def _other_types(log: Path) -> None:
    floats = {name: pa.float64() for name in ("x", "y", "z", "intensity")}
    floats |= {name: pa.float32() for name in ("qw", "qx", "qy", "qz", "length_m", "fx_px")}
    whole = {"laser_number": pa.int64(), "offset_ns": pa.int64(), "num_interior_pts": pa.float64()}
    texts = {"category": pa.dictionary(pa.int32(), pa.string()), "track_uuid": pa.large_string()}
    _every_table(log, _as({**floats, **whole, **texts, "width_px": pa.float64()}), compression="lz4")


def _reordered(log: Path) -> None:
    _every_table(log, lambda table: table.select(table.schema.names[::-1]), compression="zstd")


def _more_columns(log: Path) -> None:
    _every_table(log, lambda table: table.append_column("extra", pa.nulls(table.num_rows, pa.int8())))


def _shuffled(log: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("annotations.feather", "city_SE3_egovehicle.feather"):
        change(log / name, lambda table: table.take(pa.array(rng.permutation(table.num_rows))))


def _repeated(log: Path) -> None:
    for name in ("annotations.feather", "city_SE3_egovehicle.feather"):
        change(log / name, lambda table: pa.concat_tables([table, table.slice(7, 3)]))


def _zero_quaternions(log: Path) -> None:
    def edit(table: pa.Table) -> pa.Table:
        for name in ("qw", "qx", "qy", "qz"):
            values = table[name].to_numpy().copy()
            values[40:45] = 0.0
            table = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
        return table

    change(log / "annotations.feather", edit)
    change(log / "city_SE3_egovehicle.feather", edit)


def _nothing_in_rows(log: Path) -> None:
    def edit(table: pa.Table) -> pa.Table:
        for name in ("track_uuid", "category", "num_interior_pts"):
            values = table[name].to_pylist()
            values[3] = None
            table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, table[name].type))
        return table

    change(log / "annotations.feather", edit)


def _unknown(log: Path) -> None:
    for place in ("sensors/cameras/rear_fisheye", "sensors/radar/front", "sensors/lidar/up_lidar", "notes"):
        (log / place).mkdir(parents=True)
        for name in (f"{START}.jpg", f"{START}.feather", "readme.txt"):
            (log / place / name).write_bytes(b"1")
    for name in (f"{START}.png", f"{START}.JPG", "0001.jpg", f"{10**19}.jpg", "١٢.jpg"):
        (log / "sensors/cameras/ring_front_left" / name).write_bytes(b"1")
    (log / "map/log_map_archive_zzz.json").write_text("{}")


def _stereo_at_five_hertz(log: Path) -> None:
    for name in ("stereo_front_left", "stereo_front_right"):
        for path in sorted((log / "sensors/cameras" / name).iterdir())[1::4]:
            path.unlink()


def _other_sizes(log: Path) -> None:
    source = next((log / "sensors/cameras/ring_front_center").iterdir())
    for path in (log / "sensors/cameras/ring_side_left").iterdir():
        shutil.copy(source, path)


def _a_camera_twice(log: Path) -> None:
    change(log / "calibration/intrinsics.feather", lambda table: pa.concat_tables([table, table.slice(2, 1)]))


def _more_map(log: Path) -> None:
    path = log / (_map_of(log) or "")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"traffic_lights": [1, 2], "lane_segments": {}}))


def _linked(log: Path) -> None:
    for place in ("sensors/cameras/ring_rear_left", "map"):
        moved = log.parent.parent / "store" / place
        moved.parent.mkdir(parents=True, exist_ok=True)
        (log / place).rename(moved)
        (log / place).symlink_to(moved)


def _removed(*places: str) -> Callable[[Path], None]:
    def remove(log: Path) -> None:
        for place in places:
            path = log / place
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


def _later_sweeps(log: Path) -> None:
    """Sweeps at times that nothing is annotated at, and a damaged one."""
    for number, path in enumerate(sorted((log / "sensors/lidar").iterdir())[1:4]):
        path.rename(path.with_name(f"{int(path.stem) + 1000 * number}.feather"))
    path = log / "sensors/lidar" / f"{START + SWEEP}.feather"
    path.write_bytes(path.read_bytes()[:200])


def _one_lidar(log: Path) -> None:
    for path in (log / "sensors/lidar").iterdir():
        change(path, lambda table: table.filter(pa.array(table["laser_number"].to_numpy() < UP_LASERS)))


def _unequal_rates(log: Path) -> None:
    """Each camera has every image, every second, third or fourth."""
    for number, folder in enumerate(sorted((log / "sensors/cameras").iterdir())):
        for place, path in enumerate(sorted(folder.iterdir())):
            if place % (1 + number % 4):
                path.unlink()


def _an_unknown_class(log: Path) -> None:
    def edit(table: pa.Table) -> pa.Table:
        names = ["HOVERCRAFT" if place % 3 else name for place, name in enumerate(table["category"].to_pylist())]
        return table.set_column(table.schema.get_field_index("category"), "category", pa.array(names))

    change(log / "annotations.feather", edit)


def _without_row(*places: str) -> Callable[[Path], None]:
    """Without the rows of one camera in tables of the calibration."""

    def remove(log: Path) -> None:
        for place in places:
            change(log / place, lambda table: table.filter(pa.array(
                [name != "ring_side_left" for name in table["sensor_name"].to_pylist()]
            )))  # fmt: skip

    return remove


VARIANTS: dict[str, Callable[[Path], object]] = {
    "as published": lambda log: None,
    "other types": _other_types,
    "columns in another order": _reordered,
    "more columns": _more_columns,
    "rows in no order": _shuffled,
    "rows twice": _repeated,
    "quaternions of zeros": _zero_quaternions,
    "nothing in some rows": _nothing_in_rows,
    "unknown folders and files": _unknown,
    "stereo cameras at another rate": _stereo_at_five_hertz,
    "images of another size": _other_sizes,
    "a camera calibrated twice": _a_camera_twice,
    "more layers in the map": _more_map,
    "linked folders": _linked,
    "no map": _removed("map"),
    "no annotations": _removed("annotations.feather"),
    "no calibration": _removed("calibration"),
    "a camera without a folder": _removed("sensors/cameras/ring_front_left"),
    "no LiDAR": _removed("sensors/lidar"),
    "no images": _removed("sensors/cameras"),
    "sweeps without annotations": _later_sweeps,
    "a sweep missing": _removed(f"sensors/lidar/{START + 2 * SWEEP}.feather"),
    "points of one LiDAR": _one_lidar,
    "cameras at unequal rates": _unequal_rates,
    "an unknown class": _an_unknown_class,
    "annotations without a row": lambda log: change(log / "annotations.feather", lambda table: table.slice(0, 0)),
    "intrinsics without a camera": _without_row("calibration/intrinsics.feather"),
    "a calibration without a camera": _without_row(*list(TABLES)[2:]),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log(tmp_path_factory.mktemp("argoverse"), seconds=5.4)


@pytest.mark.guarantee("Nothing of a log is silently dropped")
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.fast_cases(6)
def test_what_is_read_and_what_is_named_is_all_that_a_log_holds(variant: str, made: Path, tmp_path: Path) -> None:
    log = Path(shutil.copytree(made, tmp_path / "val" / made.name))
    VARIANTS[variant](log)
    argoverse._open.cache_clear()
    dataset = Argoverse(sweep="annotated")
    (logged,) = dataset.find_logs(str(tmp_path / "val"))
    scenes = [dataset.read_scene(frame) for frame in logged.frames]
    assert scenes
    assert all(check_scene(scene) == [] for scene in scenes)
    assert told(log, logged, scenes) == held(log)


@pytest.mark.slow
def test_real_logs_add_up_likewise(recordings: Path) -> None:
    dataset = Argoverse(sweep="annotated")
    for logged in dataset.find_logs(str(recordings)):
        log = Path(logged.frames[0][0]).parent
        assert told(log, logged, [dataset.read_scene(frame) for frame in logged.frames]) == held(log)


def test_a_log_in_two_folders_is_read_once_in_its_official_split(made: Path, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "val", tmp_path / "zzz"):
        shutil.copytree(made, folder / made.name)
    logs = list(Argoverse(sweep="annotated").find_logs(str(tmp_path)))
    assert [(log.official, bool(log.frames)) for log in logs] == [(None, False), ("held_out", True), (None, False)]
    assert logs[0].left_out == {
        f"frame of a log that lies in another folder, too ({tmp_path / made.name})": len(logs[1].frames)
    }


def test_a_folder_of_sensors_without_any_table_is_named(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "sensors", tmp_path / "log" / "sensors")
    (log,) = Argoverse().find_logs(str(tmp_path))
    (name,) = log.left_out
    assert name.startswith("log that can't be read (")
    assert "city_SE3_egovehicle.feather: is missing" in name


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (_as({"timestamp_ns": pa.float64()}), "holds double, which rounds times; fetch it again"),
        (lambda t: t.set_column(0, "timestamp_ns", pa.array([None, *t[0].to_pylist()[1:]])), "1 rows have no time"),
    ],
)
def test_times_that_are_no_integers_cost_their_log(edit: Any, said: str, made: Path, tmp_path: Path) -> None:
    log = Path(shutil.copytree(made, tmp_path / made.name))
    change(log / "city_SE3_egovehicle.feather", edit)
    (logged,) = Argoverse().find_logs(str(tmp_path))
    (name,) = logged.left_out
    assert f"city_SE3_egovehicle.feather: column timestamp_ns: {said}" in name


def test_a_camera_that_is_asked_for_and_not_there_is_named(made: Path) -> None:
    (logged,) = Argoverse(cameras=["ring_front_left", "ring_frnt"]).find_logs(str(made.parent))
    assert logged.left_out["camera ring_frnt that the log lacks"] == 1
