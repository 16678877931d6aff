"""One run on several formats as downloaded, evaluated on their held-out parts; `test_each_format.py` has each alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from framework.data.sources.recordings import RecordingShards
from framework.data.stream.ledger import read_attempts
from framework.data.stream.mixture import read_scenes
from framework.run.layout import LEDGER
from framework.scene.types import Scene
from tests.data.sources.datasets import EVERY
from tests.data.sources.formats import FORMATS
from tests.processes import framework, run

pytestmark = pytest.mark.timeout(900)
CAMERAS = "[front,ring_front_center]"


NAMES = ("argoverse", "kitti", "kitti_raw", "kitti_tracking", "nuscenes")
"""Those with cameras and LiDAR that no extra reads."""


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tree of each format."""
    root = tmp_path_factory.mktemp("recordings")
    for name in NAMES:
        FORMATS[name].write(root / name)
    return root


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
    assert {kind for kind, _ in consumed} == {kind for kind, _ in evaluated} == set(NAMES)
    assert consumed & evaluated == set()


def _log(scene: Scene) -> tuple[str, str]:
    return scene.kind, scene.provenance["log"]
