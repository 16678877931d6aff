"""Pages opened from a file in a real browser: nothing is refused, and something is drawn."""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from framework.evaluation.report import Curve, EpisodeView, write_report
from framework.evaluation.rollout_page import GroupView, RolloutView, write_rollouts
from framework.scene.episode_picture import RoadUsers, animated_episode
from framework.scene.types import Trajectory
from framework.scene.world.generate import generate_scene
from tests.evaluation.scenes import straight

BROWSER = next((found for name in ("chromium", "google-chrome", "chrome") if (found := shutil.which(name))), None)
OFFLINE = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
           "--disable-component-update", "--disable-sync", "--disable-quic", "--hide-scrollbars")  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed"),
]


def opened(page: str, picture: Path) -> tuple[list[str], Image.Image]:
    """What the browser's console says of the page at an address, and its picture, which is written too."""
    options = (f"--user-data-dir={picture.parent / 'browser'}", "--window-size=1200,2400", f"--screenshot={picture}")
    assert BROWSER is not None
    command = [BROWSER, *OFFLINE, "--no-proxy-server", "--enable-logging=stderr", *options, page]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line], Image.open(
        io.BytesIO(picture.read_bytes())
    )


def test_pages_open_from_a_file_without_a_complaint(tmp_path: Path) -> None:
    scene = generate_scene(1)
    plan = Trajectory(straight(4.0))
    nobody = RoadUsers(np.zeros((0, 3, 3)), np.zeros((0, 2)), np.zeros((0, 3), dtype=bool))
    drawing = animated_episode(scene, {"after training": ("#2563eb", plan.states)}, nobody, rate_hz=4.0)
    curve = Curve("Loss", "loss", [(step, 1.0 / step) for step in range(1, 100)])
    episode = EpisodeView("better", scene.id, "", drawing)
    write_report(tmp_path / "report.html", "run", {}, {}, [curve], [], episodes=[episode])
    rollout = RolloutView("fast", plan, 0.25, {"progress": 0.5}, 1.5, [("fast", -0.5)])
    write_rollouts(tmp_path / "rollouts.html", "rl", {}, [GroupView(scene, "drive", [rollout])])
    for page in ("report.html", "rollouts.html"):
        complaints, picture = opened((tmp_path / page).as_uri(), tmp_path / "page.png")
        assert complaints == []
        colours = picture.convert("RGB").getcolors(maxcolors=1 << 24)
        assert colours is not None
        assert len(colours) > 50, "curves and scenes are drawn"
    (tmp_path / "foreign.html").write_text("<script>console.error('told')</script>", encoding="utf-8")
    foreign = (tmp_path / "foreign.html").as_uri()
    assert len(opened(foreign, tmp_path / "foreign.png")[0]) == 1, "the console is heard"
