from __future__ import annotations

from pathlib import Path

import pytest

from framework.evaluation.rollout_page import GroupView, RolloutView, write_rollouts
from framework.scene.types import Trajectory
from framework.scene.world.generate import generate_scene
from tests.evaluation.scenes import straight
from tests.evaluation.test_report import MISCHIEF, Reader


@pytest.mark.attack("folder", "HTML in answers of a page of rollouts", "text")
def test_a_page_shows_every_answer_and_runs_nothing(tmp_path: Path) -> None:
    rollouts = [
        RolloutView(
            f"slow {MISCHIEF}",
            Trajectory(straight(2.0)),
            0.25,
            {"collision": 0.0, "progress": 0.5},
            1.5,
            [(f"slow {MISCHIEF}", -2.0), ("fast", 0.0)],
        ),
        RolloutView("<nonsense>", None, -0.5, {"collision": -1.0, "progress": 0.0}, -1.5),
    ]
    write_rollouts(tmp_path / "step.html", "rl", {"run": "rl"}, [GroupView(generate_scene(1), MISCHIEF, rollouts)])
    page = (tmp_path / "step.html").read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(page)
    assert not reader.open
    assert "script" not in reader.tags
    assert all(source.startswith("data:") for source in reader.sources)
    assert page.count("</span><span>fast</span>") == 1, "a sure token has no colour"
    assert page.count('<span class="open">slow &lt;script') == 1, "what was sampled at 14 % has one"
    said = "|".join(reader.texts)
    assert said.index(f"slow {MISCHIEF}") < said.index("<nonsense>"), "the best answer stands first"
    for figure in ("0.250", "+1.500", "-1.500", "-1.000", "0.500", "collision", "progress"):
        assert figure in reader.texts
