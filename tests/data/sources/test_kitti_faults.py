"""Faults of KITTI's files cost what they concern, and each is told once, with file, field and remedy."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from framework.data.sources.base import RecordedDataset
from framework.data.sources.kitti import detection, raw, tracking
from framework.data.sources.kitti.detection import Kitti
from framework.data.sources.kitti.oxts import ascending
from framework.data.sources.kitti.raw import KittiRaw
from framework.data.sources.kitti.tracking import KittiTracking
from framework.scene.check import check_scene
from framework.scene.types import Scene, SceneError
from tests.data.sources.kitti_tree import (
    DATE,
    FRAMES,
    GONE,
    STRAIGHT,
    TURNING,
    numbers,
    write_object,
    write_raw,
    write_tracking,
)

DATASETS: dict[str, RecordedDataset] = {
    "object": Kitti(),
    "raw": KittiRaw(sweep="annotated"),
    "tracking": KittiTracking(sweep="annotated"),
}
DRIVE = f"{DATE}/{DATE}_drive_{STRAIGHT:04d}_sync"
NOW = 20
"""The frame of a drive that is damaged."""
FUTURES = FRAMES - 50
"""The frames of a drive that have a future."""
OF_FRAME, SWEEP = "training/calib/000020.txt", "training/velodyne/000020.bin"
PACKET, STAMPS = f"{DRIVE}/oxts/data/{NOW:010d}.txt", f"{DRIVE}/oxts/timestamps.txt"
TRACKLETS, TO_CAMERA = f"{DRIVE}/tracklet_labels.xml", f"{DATE}/calib_velo_to_cam.txt"
Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kitti")
    write_object(root / "object", (18, 19, 20, 21))
    write_raw(root / "raw", (STRAIGHT,))
    write_tracking(root / "tracking", (0,))
    return root


def damaged(trees: Path, layout: str, damage: Damage, folder: Path) -> tuple[Counter[str], dict[int, Scene], int]:
    """What is told of a damaged tree, the scenes of the damaged frame and its neighbours, and the number of frames."""
    for cached in (raw._open, tracking._open, detection.read_drives, detection.read_splits):
        cached.cache_clear()
    root = Path(shutil.copytree(trees / layout, folder / layout))
    damage(root)
    told: Counter[str] = Counter()
    scenes, count = {}, 0
    for log in DATASETS[layout].find_logs(str(root)):
        told.update({reason: number for reason, number in log.left_out.items() if "no scene" not in reason})
        count += len(log.frames)
        for frame in log.frames:
            if abs(frame[1] - NOW) > 1:
                continue
            try:
                scene = scenes[frame[1]] = DATASETS[layout].read_scene(frame)
            except SceneError as error:
                told[str(error)] += 1
                continue
            assert check_scene(scene) == []
            told.update(json.loads(scene.provenance.get("dropped", "{}")))
    return told, scenes, count


def edit(name: str, old: str, new: str, count: int = 1) -> Damage:
    """Replaces a regular expression in a file."""

    def damage(root: Path) -> None:
        text = (root / name).read_text()
        changed = re.sub(old, new, text, count=count, flags=re.MULTILINE)
        assert changed != text
        (root / name).write_text(changed)

    return damage


def gone(name: str) -> Damage:
    return lambda root: (root / name).unlink()


def cut(name: str) -> Damage:
    return lambda root: (root / name).write_bytes((root / name).read_bytes()[:-5])


IDENTITY_OF_ZEROS = numbers([0.0] * 9)
OTHER_RIG = "P_rect_02: " + numbers([900.0, 0.0, 800.0, 0.0, 0.0, 900.0, 450.0, 0.0, 0.0, 0.0, 1.0, 0.0])


@pytest.mark.parametrize(
    ("layout", "damage", "told", "count"),
    [
        ("object", gone(OF_FRAME), r"frame without a file in .*; fetch data_object_calib.zip", 3),
        ("object", cut(SWEEP), r"lidar \(.*velodyne/000020.bin: .* truncated; fetch it", 4),
        ("object", gone(SWEEP), r"lidar \(no file in .*; fetch data_object_velodyne.zip", 4),
        ("object", gone("training/image_2/000020.png"), r"image_2/000020.png: there is no such image; fetch", 4),
        ("object", cut("training/image_3/000020.png"), r"front_right \(.*image_3/000020.png: is cut short; fetch", 4),
        ("object", edit(OF_FRAME, "^R0_rect: .*$", f"R0_rect: {IDENTITY_OF_ZEROS}"),
         r"calib/000020.txt: R_rect: is no rotation; restore it", 4),
        ("object", edit(OF_FRAME, "^P2: .*$", "P2: 1 2 3"),
         r"front \(.*calib/000020.txt: P2: 3 numbers are no 3 x 4 matrix; restore it", 4),
        ("object", edit(OF_FRAME, "^P2: .*$", OTHER_RIG.replace("P_rect_02", "P2")),
         r"000020.txt: P2: is of an image with its centre at .* 124 x 38 pixels: it belongs to another rig;", 4),
        ("object", edit("training/label_2/000020.txt", "^Car 0.00", "Car"),
         r"label: .*label_2/000020.txt: line 1: 14 columns, not 15; restore it", 4),
        ("object", edit("training/label_2/000020.txt", r"30.0 20.0 1.5", "30.0 20.0 -1.5"),
         r"line 1: height, width or length: is not positive, or beyond 100 m; restore it", 4),
        ("raw", gone(f"{DATE}/calib_imu_to_velo.txt"), r"calib_imu_to_velo.txt: is missing; restore it", 0),
        ("raw", edit(TO_CAMERA, "^R: .*$", f"R: {IDENTITY_OF_ZEROS}"),
         r"calib_velo_to_cam.txt: R: is no rotation; restore it", 0),
        ("raw", edit(f"{DATE}/calib_cam_to_cam.txt", "^S_rect_02: .*$", "S_rect_02: 1600 900"),
         r"front \(.*calib_cam_to_cam.txt: P_rect_02: is of an image of 1600 x 900, .*another rig; restore it",
         FRAMES),
        ("raw", gone(f"{DRIVE}/image_02/data/{NOW:010d}.png"), r"front \(no image with a time\)", FRAMES),
        ("raw", cut(f"{DRIVE}/velodyne_points/data/{NOW:010d}.bin"), r"lidar \(.*0000000020.bin: .*truncated; fetch it",
         FRAMES),
        ("raw", gone(f"{DRIVE}/image_03/timestamps.txt"), r"image of front_right: .*timestamps.txt: is missing; rest",
         FRAMES),
        ("raw", gone(STAMPS), r"timestamps.txt: is missing; restore it",
         0),
        ("raw", edit(PACKET, "^[^ ]* ", ""), r"packet 20: 29 values, not 30; restore it",
         FRAMES - 1),
        ("raw", edit(PACKET, "^[^ ]*", "nan"), r"packet 20: a value is not finite; restore",
         FRAMES - 1),
        ("raw", edit(STAMPS, r"^.*:27\.9.*$", "2011-09-26 11:00:00.000000000"),
         r"pose out of the order of time: .*oxts/data; restore it", FRAMES - 1),
        ("raw", edit(f"{DRIVE}/image_02/timestamps.txt", r"^.*:27\.0.*$", "2011-09-26 11:00:00.000000000"),
         r"image of front whose time is not within 0.1 s of its frame's", FRAMES),
        ("raw", edit(STAMPS, r"^.*:27\.9.*$", "noon"),
         r"stamp: .*timestamps.txt: line 30: 'noon' is no time; restore it", FRAMES - 1),
        ("raw", cut(TRACKLETS), r"tracklet_labels.xml: is no XML of tracklets .*; restore it",
         FUTURES),
        ("raw", edit(TRACKLETS, "<h>1.5</h>", "<h>tall</h>"),
         r"tracklet: .*tracklet_labels.xml: item 0: h: 'tall' is no number; restore it", FRAMES),
        ("tracking", gone("training/oxts/0000.txt"), r"oxts/0000.txt: is missing; fetch data_tracking_oxts.zip", 0),
        ("tracking", gone("training/calib/0000.txt"), r"calib/0000.txt: is missing; restore it", 0),
        ("tracking", edit("training/calib/0000.txt", "^Tr_imu_velo .*$", ""), r"0000.txt: Tr_imu_to_velo: is miss", 0),
        ("tracking", edit("training/label_02/0000.txt", r"^20 0 Car .*$", "20 0 Car"),
         r"label: .*label_02/0000.txt: line 81: 3 columns, not 17; restore it", FRAMES),
        ("tracking", edit("training/oxts/0000.txt", r"^49\.[^ ]* ", "91.0 "), r"packet 0: lat, lon: 91.0, .* no place",
         FRAMES - 1),
    ],
)  # fmt: skip
@pytest.mark.fast_cases(8)
def test_a_fault_is_told_and_leaves_the_rest(
    layout: str, damage: Damage, told: str, count: int, trees: Path, tmp_path: Path
) -> None:
    reasons, scenes, frames = damaged(trees, layout, damage, tmp_path)
    matching = [reason for reason in reasons if re.search(told, reason)]
    assert len(matching) == 1, reasons
    assert frames == count
    assert {NOW - 1, NOW + 1} <= scenes.keys() or count == 0


def test_files_are_joined_by_number_and_blank_stamps_passed_over(tmp_path: Path) -> None:
    write_raw(tmp_path, (TURNING,))
    (log,) = KittiRaw(sweep="annotated").find_logs(str(tmp_path))
    assert len(log.frames) == FRAMES
    scenes = {k: KittiRaw(sweep="annotated").read_scene(log.frames[k]) for k in (GONE - 1, GONE, GONE + 1)}
    assert [scene.lidar is None for scene in scenes.values()] == [False, True, False]
    assert json.loads(scenes[GONE].provenance["dropped"])["sensor lidar (no sweep of the moment)"] == 1
    assert scenes[GONE].boxes is not None
    assert scenes[GONE].boxes.points is None


def test_drives_that_are_not_synchronised_and_repeated_ones_are_named(tmp_path: Path) -> None:
    day = write_raw(tmp_path / "one", (STRAIGHT,))
    shutil.copytree(day, tmp_path / "two" / DATE)
    (day / f"{DATE}_drive_0017_extract").mkdir()
    logs = list(KittiRaw().find_logs(str(tmp_path)))
    reasons = " ".join(reason for log in logs for reason in log.left_out)
    assert sum(bool(log.frames) for log in logs) == 1
    assert "drive found twice (" in reasons
    assert "drive whose sensors are not synchronised; fetch its _sync archive (" in reasons


@pytest.mark.parametrize(
    ("times", "kept"),
    [([], []), ([3], [0]), ([1, 2, 3], [0, 1, 2]), ([1, 9, 2, 3], [0, 2, 3]), ([5, 6, 1, 7], [0, 1, 3]), ([2, 2], [1])],
)
def test_a_stamp_that_is_wrong_costs_itself_alone(times: list[int], kept: list[int]) -> None:
    assert ascending(times) == kept


def test_stamps_of_sweeps_out_of_order_leave_tracks_in_the_order_of_time(trees: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(trees / "raw", tmp_path / "raw"))
    stamps = copy / DRIVE / "velodyne_points" / "timestamps.txt"
    lines = stamps.read_text().splitlines()
    lines[NOW], lines[NOW + 1] = lines[NOW + 1], lines[NOW]
    stamps.write_text("\n".join(lines) + "\n")
    _, tracks = raw._open(copy / DRIVE)
    assert tracks
    assert all((track.times[1:] > track.times[:-1]).all() for track in tracks.values())
