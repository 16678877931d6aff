"""The page of a saved step's rollouts: what was asked, with the picture that the policy saw, and what it answered."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from framework.data.stream.mixture import OpenMixture
from framework.evaluation.rollout_page import write_rollouts
from framework.scene.types import SceneError
from framework.training.rl.rollout import RolloutGroup
from framework.training.rl.rollout_pages import group_view
from tests.training.rl.policy_setting import Setting

PICTURE = re.compile(r'<img[^>]* src="data:image/jpeg;base64,[^"]{1000,}"')


@pytest.mark.slow
def test_each_scene_is_shown_with_its_camera_though_samples_go_without(
    setting: Setting, groups: list[RolloutGroup], tmp_path: Path
) -> None:
    assert not any(group.prompt.scene.cameras for group in groups)
    made = [group_view(group, setting.loader, setting.stage) for group in groups]
    assert [one.scene.id for one in made] == [group.prompt.scene.id for group in groups]
    write_rollouts(tmp_path / "step.html", "rl", {}, made)
    assert len(PICTURE.findall((tmp_path / "step.html").read_text(encoding="utf-8"))) == len(groups)
    assert not any(group.prompt.scene.cameras for group in groups), "nothing is kept"


@pytest.mark.slow
def test_storage_that_fails_costs_the_picture_alone(
    setting: Setting, groups: list[RolloutGroup], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise SceneError("storage is gone")

    monkeypatch.setattr(OpenMixture, "read", fail)
    made = group_view(groups[0], setting.loader, setting.stage)
    assert made.scene is groups[0].prompt.scene
    assert "is shown without pictures: storage is gone" in caplog.text
