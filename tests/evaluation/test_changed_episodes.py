"""The scenes that a report shows as driven otherwise after training."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from framework.evaluation.changed_episodes import changed_episodes
from framework.evaluation.examples import DrivenScene, Example
from framework.evaluation.results import MODEL, SIMULATION
from framework.evaluation.scene_rows import scene_rows, write_scene_rows
from framework.run.files import write_json
from framework.scene.episode_picture import RoadUsers
from framework.scene.world.generate import generate_scene

OF = {"step": 1, "weights": "0123"}
NOBODY = RoadUsers(np.zeros((0, 2, 3)), np.zeros((0, 2)), np.zeros((0, 2), dtype=bool))


def driven(seed: int, reward: float, ahead: float) -> Example:
    ego = np.array([[0.0, 0.0, 0.0, 5.0], [ahead, 0.0, 0.0, 5.0]])
    example = Example(generate_scene(seed), driven=DrivenScene(ego, NOBODY, 4.0))
    return example.with_measures(SIMULATION, {"reward": reward})


def test_the_scenes_that_changed_most_are_shown_and_no_others(tmp_path: Path) -> None:
    before = [driven(seed, reward=0.0, ahead=1.0) for seed in range(6)]
    after = [driven(seed, reward, ahead=2.0) for seed, reward in enumerate((0.0, 0.5, 0.25, -0.5, -1.0, 1.0))]
    for stage, examples in (("untrained", before), ("rl", after)):
        write_scene_rows(tmp_path, stage, "hard", OF, scene_rows(examples))
    stages = {stage: {"hard": {SIMULATION: {MODEL: {}}}} for stage in ("untrained", "rl")}
    write_json(tmp_path / "evaluated.json", {stage: {"hard": OF} for stage in stages})
    views = changed_episodes(tmp_path, stages, after)
    assert [(view.tag, view.id) for view in views] == [
        ("better", after[5].scene.id),
        ("better", after[1].scene.id),
        ("worse", after[4].scene.id),
    ]
    assert "reward 0.00 → 1.00" in views[0].facts
    assert "before training" in views[0].drawing
    other_eval = [driven(seed, 0.0, ahead=3.0) for seed in range(6)]
    assert changed_episodes(tmp_path, stages, other_eval) == [], "the rows are of other episodes"
    assert changed_episodes(tmp_path, {"rl": stages["rl"]}, after) == [], "there is nothing to compare with"
