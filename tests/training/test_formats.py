"""Every format as downloaded: converted, shown, trained on for 20 steps and evaluated on its held-out part."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from framework.__main__ import main
from framework.data.shards.writer import Summary
from framework.data.sources.recordings import RecordingShards
from framework.data.stream.ledger import read_attempts
from framework.data.stream.mixture import read_scenes
from framework.run.layout import LEDGER
from framework.scene.types import Scene
from tests.data.sources import argoverse_tree, kitti_tree, nuscenes_tree
from tests.data.sources.datasets import EVERY
from tests.processes import framework, run
from tools.convert.__main__ import main as convert

pytestmark = pytest.mark.timeout(900)
CAMERAS = "[front,ring_front_center]"


def _argoverse(root: Path) -> None:
    for part in ("train", "val"):
        argoverse_tree.write_log(root / part, f"7c696054-aaaa-4000-8000-{part:0>12}".replace("train", "00001"))


def _kitti_drives(root: Path) -> None:
    kitti_tree.write_raw(root, (kitti_tree.STRAIGHT, 17), frames=56)  # whose names the hash puts in both splits


FORMATS: dict[str, Callable[[Path], Any]] = {
    "argoverse": _argoverse,
    "kitti": kitti_tree.write_object,
    "kitti_raw": _kitti_drives,
    "kitti_tracking": lambda root: kitti_tree.write_tracking(root, (0, 12)),
    "nuscenes": nuscenes_tree.write_tree,
}


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tree of each format."""
    root = tmp_path_factory.mktemp("recordings")
    for name, write in FORMATS.items():
        write(root / name)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_a_tree_is_converted_and_shown(name: str, trees: Path, tmp_path: Path) -> None:
    few = Path(shutil.copytree(trees / name, tmp_path / name))
    assert convert(["--source", name, "--input", str(few), "--out", str(tmp_path / "shards")]) == 0
    assert Summary.read(tmp_path / "shards" / "manifest.json").skipped == []
    paths = [f"paths.cache={tmp_path}/cache", f"paths.recordings={few}", f"page={tmp_path}/page.html"]
    assert main(["show-data", f"source={name}", "scale=tiny", "scenes=1", f"data.cameras={CAMERAS}", *paths]) == 0
    assert "data:image/jpeg" in (tmp_path / "page.html").read_text()


@pytest.mark.slow
def test_twenty_steps_on_all_formats_are_evaluated_on_other_logs(trees: Path, tmp_path: Path) -> None:
    """One run for all: by the ledger it trained on every format, and no log of theirs that is held out."""
    paths = [f"paths.{name}={tmp_path}/{name}" for name in ("runs", "cache")] + [f"paths.recordings={trees}"]
    steps = [
        "curriculum.max_steps_per_stage=20",
        "stage.steps=20",
        "checkpoint.every=20",
        "data.global_batch=4",
        "data.micro_batch=4",
    ]
    words = [
        f"data.cameras={CAMERAS}",
        "data.max_length=4000",
        "evals.recordings.scenes=21",
        "eval_defaults.detect_tokens=20",
    ]
    done = run(framework("recipe=sft_drive", "scale=tiny", *paths, *steps, *words))
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = (tmp_path / "runs").iterdir()
    results = json.loads((folder / "results.json").read_text())["drive"]["recordings"]
    assert {"drive", "detect", "answer"} <= results.keys()
    (attempt,) = read_attempts(folder / LEDGER)["drive"]
    assert attempt.rows["refused"].sum() == 0
    trained, held_out = (
        list(read_scenes(RecordingShards(trees, str(tmp_path / "cache"), EVERY, split)))
        for split in ("train", "held_out")
    )
    consumed = {_log(trained[sample]) for sample in attempt.rows["sample"].tolist()}
    evaluated = {_log(scene) for scene in held_out}
    assert {kind for kind, _ in consumed} == {kind for kind, _ in evaluated} == set(FORMATS)
    assert consumed & evaluated == set()


def _log(scene: Scene) -> tuple[str, str]:
    return scene.kind, scene.provenance["log"]
