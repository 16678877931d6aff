"""A damaged file costs itself; a file that is mended writes new shards; no table leads out of its dataset."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from framework.data.sources.base import RecordedDataset, inside
from framework.data.sources.kitti.detection import Kitti
from framework.data.sources.kitti.raw import KittiRaw, read_stamps
from framework.data.sources.kitti.tracking import KittiTracking
from framework.data.sources.physical_ai.dataset import PhysicalAI
from framework.data.sources.py123d.dataset import Py123D
from framework.data.sources.recordings import RecordingShards, find_logs
from framework.scene.types import SceneError
from tests.data.sources import kitti_tree, physical_ai_tree

NOISE = bytes(range(255, 127, -1)) * 4
VECTORS = Path(__file__).parent / "vectors"


def _four(root: Path) -> None:
    kitti_tree.write_object(root, (1, 2, 3, 4))  # of which the last three are those of val.txt


def _unzip(root: Path) -> None:
    zipfile.ZipFile(VECTORS / "py123d_logs.zip").extractall(root)


@pytest.mark.parametrize(("dataset", "write", "file", "told"), [
    (Kitti(), _four, "ImageSets/val.txt", "frame that no list of ImageS"),
    (KittiTracking(), lambda root: kitti_tree.write_tracking(root, (0,)), "training/oxts/0000.txt", "can't be read"),
    (KittiRaw(), lambda root: kitti_tree.write_raw(root, (0,), 2), "**/oxts/timestamps.txt", "drive that can't be"),
    (KittiRaw(), lambda root: kitti_tree.write_raw(root, (0,), 2), "**/oxts/data/0000000000.txt", "1 values, not 30"),
    (Py123D(), _unzip, "**/log_a/ego_state_se3.arrow", "log that can't be read"),
    (PhysicalAI(), physical_ai_tree.write_download, "**/*.egomotion.parquet", "clip that can't be read"),
])  # fmt: skip
def test_bytes_of_anything_are_told_and_cost_their_log_at_most(
    dataset: RecordedDataset, write: Callable[[Path], Any], file: str, told: str, tmp_path: Path
) -> None:
    write(tmp_path)
    next(tmp_path.glob(file)).write_bytes(NOISE)
    logs = find_logs(tmp_path, {"it": dataset})["it"]
    assert any(told in what for log in logs for what in log.left_out)
    json.dumps([(log.frames, log.left_out, log.files) for log in logs])  # as ranks of a node tell each other


def test_a_map_that_logs_share_is_one_of_their_files(tmp_path: Path) -> None:
    _unzip(tmp_path)
    shared = {path for log in find_logs(tmp_path, {"it": Py123D()})["it"] for path in log.files if "maps" in path}
    assert [Path(path).name for path in shared] == ["nuplan_vegas.arrow"]


def test_bytes_of_anything_in_an_archive_cost_its_clips(tmp_path: Path) -> None:
    folder = physical_ai_tree.write_download(tmp_path)
    archive = next(folder.glob("labels/egomotion/*.zip"))
    with zipfile.ZipFile(archive) as stored:
        files = {name: stored.read(name) for name in stored.namelist()}
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    whole = archive.read_bytes()
    archive.write_bytes(whole[:150] + NOISE + whole[150 + len(NOISE) :])
    logs = find_logs(tmp_path, {"it": PhysicalAI()})["it"]
    assert sum("clip that can't be read" in what for log in logs for what in log.left_out) == 1
    assert sum(bool(log.frames) for log in logs) == len(physical_ai_tree.CLIPS) - 1


def test_an_index_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    physical_ai_tree.write_download(tmp_path, {"../x": (7, "train")})
    (log,) = find_logs(tmp_path, {"it": PhysicalAI()})["it"]
    assert "'../x' is no clip's name" in next(iter(log.left_out))


def test_an_info_file_that_is_nested_too_deeply_costs_itself(tmp_path: Path) -> None:
    (tmp_path / "info.json").write_text("[" * 100_000)
    (log,) = find_logs(tmp_path, {"it": Kitti()})["it"]
    assert "info.json: RecursionError" in next(iter(log.left_out))


def test_a_stamp_of_no_text_costs_itself(tmp_path: Path) -> None:
    path = tmp_path / "timestamps.txt"
    path.write_bytes(b"2011-09-26 13:02:25.0\n\xff\xfe\n2011-09-26 13:02:25.2\n")
    times, left_out = read_stamps(path)
    assert (sorted(times), sum(left_out.values())) == ([0, 2], 1)


def test_an_image_that_is_written_again_in_place_writes_new_shards(tmp_path: Path) -> None:
    root = tmp_path / "kitti"
    kitti_tree.write_object(root, (1, 2))

    def name() -> str:
        return RecordingShards(root, str(tmp_path / "cache"), {"kitti": Kitti()}).folder.name

    image, first = root / "training/image_2/000001.png", name()
    assert name() == first
    whole = image.read_bytes()
    image.write_bytes(whole[:-9])
    assert name() != first


@pytest.mark.parametrize("name", ["/etc/passwd", "../x.png", "a/../../x.png", ".."])
def test_no_table_leads_out_of_its_dataset(name: str, tmp_path: Path) -> None:
    with pytest.raises(SceneError, match="leads out of the dataset's folder"):
        inside(tmp_path, name)
    assert inside(tmp_path, "a/../b/..x.png") == tmp_path / "a/../b/..x.png"
