"""Formats of recordings trained and judged end to end: one run on all whose trees the tests make, each by its split."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from framework.data.sources.lerobot.write import write_lerobot
from tests.data.sources.lerobot_tree import RATE, scenes
from tests.data.sources.physical_ai_tree import write_download
from tests.processes import REPOSITORY, framework, run

LOGS = REPOSITORY / "tests/data/sources/vectors/py123d_logs.zip"
CAMERAS = ["front", "camera_front_wide_120fov", "pcam_f0"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_123d_physical_ai_and_lerobot_train_and_are_judged_on_what_they_hold_out(tmp_path: Path) -> None:
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    write_lerobot(scenes(logs=12, rows=2), recordings / "driving", RATE)  # the eighth is held out
    write_download(recordings)
    zipfile.ZipFile(LOGS).extractall(recordings / "123d")
    paths = [f"paths.{name}={tmp_path / name}" for name in ("recordings", "runs", "cache")]
    words = [f"data.cameras=[{','.join(CAMERAS)}]", "curriculum.max_steps_per_stage=20"]
    done = run(framework("recipe=sft_drive", "scale=tiny", *paths, *words))
    assert done.returncode == 0, done.stderr[-3000:]
    kinds = [json.loads(path.read_text())["kinds"] for path in (tmp_path / "cache").glob("*/manifest.json")]
    assert sorted(kinds, key=lambda each: -each["lerobot"]) == [
        {"py123d": 14, "physical_ai": 14, "lerobot": 43},
        {"py123d": 14, "physical_ai": 28, "lerobot": 5},
    ]
    results = json.loads((tmp_path / "runs" / "sft_drive-tiny" / "results.json").read_text())
    assert "recordings" in results["drive"]
