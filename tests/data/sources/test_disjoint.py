"""What a run trained, by its ledger, and what evaluations read have no log in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from framework.data.sources.base import RecordedDataset, Split
from framework.data.sources.kitti.detection import Kitti
from framework.data.sources.kitti.raw import KittiRaw
from framework.data.sources.recordings import RecordingShards
from framework.data.stream.ledger import read_attempts
from framework.data.stream.mixture import Mixture, Part, read_scenes
from framework.scene.types import Scene
from tests.data.sources.kitti_tree import STRAIGHT, write_object, write_raw
from tests.data.streams import Trial, pipeline

HELD_OUT_DRIVE = 17
"""A drive that the hash of its name holds out."""
DATASETS: dict[str, RecordedDataset] = {"kitti": Kitti(cameras=[]), "kitti_raw": KittiRaw(cameras=[])}
STEPS = 3


def log_of(scene: Scene) -> tuple[str, str]:
    return scene.kind, scene.provenance["log"]


@pytest.mark.guarantee("What a run trained and what its evaluations read share no log")
def test_the_ledger_and_the_evaluations_share_no_log(processor: Any, tmp_path: Path) -> None:
    """A split by official lists and one by hash, in one stream."""
    write_object(tmp_path / "tree" / "object")
    write_raw(tmp_path / "tree" / "raw", (STRAIGHT, HELD_OUT_DRIVE), frames=12)

    def stream(split: Split) -> RecordingShards:
        return RecordingShards(tmp_path / "tree", str(tmp_path / "cache"), DATASETS, split, workers=1)

    mixture = Mixture({"recordings": Part(stream("train"), {"answer": 0.7, "caption": 0.3})})
    Trial(mixture, pipeline(), processor, tmp_path / "run", STEPS).attempt()
    (attempt,) = read_attempts(tmp_path / "run" / "ledger")["sft"]
    trained = [log_of(scene) for scene in read_scenes(stream("train"))]
    consumed = {trained[sample] for sample in attempt.rows["sample"].tolist()}
    evaluated = {log_of(scene) for scene in read_scenes(stream("held_out"))}
    assert len(attempt.rows) == 8 * STEPS
    assert len(consumed) > 3
    assert {kind for kind, _ in consumed} == {kind for kind, _ in evaluated} == {"kitti", "kitti_raw"}
    assert consumed & evaluated == set()
