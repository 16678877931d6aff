"""What an evaluation would refuse after training is refused before it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from framework.recipe.catalogue import Catalogue
from framework.recipe.compose import compose
from framework.recipe.instantiate import instantiate
from framework.scene.types import Scene
from framework.training.evaluators import base
from framework.training.evaluators.base import DryRunnable, dry_run
from framework.training.tasks.train import Train
from tests.worlds import worlds


@dataclasses.dataclass(frozen=True)
class Setting:
    train: Train
    processor: Any


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder = tmp_path_factory.mktemp("dry_run")
    words = ["recipe=rl_dapo", "scale=tiny", f"paths.cache={worlds()}", f"paths.runs={folder}"]
    words += ["evals=[simulated_hard,closed_loop,held_out]"]
    words += ["sources.world_hard_held_out.scenes=3", "sources.world_held_out.scenes=3"]
    train = instantiate(compose(words, Catalogue()))
    assert isinstance(train, Train)
    model = train.model(special_tokens=train.data.special_tokens, initialize=False)
    return Setting(train, model.processor)


def _told(setting: Setting, **evals: Any) -> str:
    with pytest.raises(ValueError, match="these evals would fail after training") as error:
        dry_run(evals, setting.train.data, setting.processor)
    return str(error.value)


@pytest.mark.slow
def test_sound_evals_pass(setting: Setting) -> None:
    assert all(isinstance(each, DryRunnable) for each in setting.train.evals.values())
    dry_run(setting.train.evals, setting.train.data, setting.processor)


def test_the_first_rank_waits_for_no_other(setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the other ranks do not take part")

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        for name in ("barrier", "all_gather", "all_reduce", "broadcast", "gather"):
            monkeypatch.setattr(torch.distributed, name, refuse)
        for evaluator in setting.train.evals.values():
            assert isinstance(evaluator, DryRunnable)
            evaluator.dry_run(setting.train.data, setting.processor)
    finally:
        torch.distributed.destroy_process_group()


def test_all_faults_are_told_at_once(setting: Setting, caplog: pytest.LogCaptureFixture) -> None:
    held_out: Any = setting.train.evals["held_out"]
    simulated: Any = setting.train.evals["simulated_hard"]
    told = _told(
        setting,
        misspelt=dataclasses.replace(held_out, tasks={"drvie": 64}),
        not_driven=dataclasses.replace(simulated, task="caption"),
        empty=dataclasses.replace(held_out, scenes=0),
    )
    assert "evals.misspelt: task drvie: is none of data.tasks; there are: drive" in told
    assert "evals.not_driven: evals: task caption has no plan to drive" in told
    assert "evals.empty: source: has no scenes" in told
    assert caplog.text == "", "no traceback"


@pytest.mark.parametrize("name", ["held_out", "simulated_hard"])
def test_a_horizon_that_the_scenes_do_not_have(setting: Setting, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(source: Any, limit: int | None = None) -> list[Scene]:
        scenes = []
        for scene in original(source, limit):
            assert scene.future is not None
            future = dataclasses.replace(scene.future, states=scene.future.states[:5])
            scenes.append(dataclasses.replace(scene, future=future, surroundings=None))
        return scenes

    original = base.read_scenes
    monkeypatch.setattr(base, "read_scenes", short)
    assert f"evals.{name}: " in _told(setting, **{name: setting.train.evals[name]})
