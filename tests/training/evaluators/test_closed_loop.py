"""Closed-loop evaluation of the tiny model: it replans on the way on every rank; answers without a plan are counted."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from framework.evaluation.results import MODEL, SIMULATION
from framework.model.language_action import LanguageActionModel
from framework.parallel.mesh import DataRank
from framework.recipe.compose import compose
from framework.recipe.instantiate import instantiate
from framework.scene.types import Scene, Trajectory
from framework.simulation.closed_loop import MEASURES
from framework.simulation.dynamics import Bicycle
from framework.simulation.simulator import Simulator
from framework.training.evaluators import closed_loop, open_loop
from framework.training.evaluators.closed_loop import ClosedLoopEvaluator
from framework.training.evaluators.driver import Answers, Driver
from framework.training.evaluators.open_loop import OpenLoopEvaluator
from framework.training.rl.stage import PolicyStage
from framework.training.tasks.train import Train
from tests.processes import run_ranks
from tests.training.evaluators.closed_loop_ranks import drive
from tests.worlds import worlds

SCENES = 3
CLOSED = "evals=[simulated_hard,closed_loop]"


@dataclasses.dataclass
class Setting:
    """A recipe's task with this evaluator, and a random model."""

    train: Train
    model: LanguageActionModel
    evaluator: ClosedLoopEvaluator


@pytest.fixture(scope="module")
def setting() -> Setting:
    paths = [f"paths.cache={worlds()}", f"sources.world_hard_held_out.scenes={SCENES}"]
    changes = ["simulator/dynamics=bicycle", "evals.closed_loop.source.workers=1"]
    train = instantiate(compose(["recipe=rl_dapo", "scale=tiny", CLOSED, *paths, *changes]))
    assert isinstance(train, Train)
    evaluator = train.evals["closed_loop"]
    assert isinstance(evaluator, ClosedLoopEvaluator)
    torch.manual_seed(0)
    model = train.model(special_tokens=train.data.special_tokens)
    return Setting(train, model, dataclasses.replace(evaluator, steps=8))


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The scenes' ids at every question to the model."""
    asked, answer = list[list[str]](), Driver.answer

    def watched(driver: Driver, scenes: Sequence[Scene]) -> Answers:
        asked.append([scene.id for scene in scenes])
        return answer(driver, scenes)

    monkeypatch.setattr(Driver, "answer", watched)
    return asked


@pytest.mark.guarantee("Closed-loop evaluation replans with the model on every rank, and counts failed plans")
@pytest.mark.parametrize("task", ["drive", "reason"])
@pytest.mark.slow
def test_the_model_is_asked_once_for_every_plan(setting: Setting, looks: list[list[str]], task: str) -> None:
    evaluator = dataclasses.replace(setting.evaluator, task=task, max_new_tokens=44)
    results, examples = evaluator.evaluate(setting.model, setting.train.data, DataRank())
    assert len(looks) == 2
    assert looks[1] == [f"{name}@4" for name in looks[0]]
    measured = results[SIMULATION][MODEL]
    assert set(measured) <= {*MEASURES, "parse_failure", "scenes"}
    assert {"collision", "progress", "planning_score"} <= set(measured)
    assert [example.scene.id for example in examples] == looks[0]


@pytest.mark.slow
def test_ranks_that_write_nothing_ask_all_the_same(setting: Setting, looks: list[list[str]]) -> None:
    """Under tensor parallelism the model's passes are collective."""
    results, _ = setting.evaluator.evaluate(setting.model, setting.train.data, DataRank(is_writer=False))
    assert len(looks) == 2
    assert results[SIMULATION][MODEL] == {"scenes": {"all": 0.0}}


@pytest.mark.guarantee("Closed-loop evaluation replans with the model on every rank, and counts failed plans")
def test_failures_are_counted_over_all_plans(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Driver.answer

    def failing_later(driver: Driver, scenes: Sequence[Scene]) -> Answers:
        texts, plans = answer(driver, scenes)
        later = "@" in scenes[0].id
        return Answers(texts, [None if later and row == 0 else plan for row, plan in enumerate(plans)])

    monkeypatch.setattr(Driver, "answer", failing_later)
    results, _ = setting.evaluator.evaluate(setting.model, setting.train.data, DataRank())
    assert results[SIMULATION][MODEL]["parse_failure"]["all"] == pytest.approx(1 / (2 * SCENES))
    cut = dataclasses.replace(setting.evaluator, max_new_tokens=1)
    results, _ = cut.evaluate(setting.model, setting.train.data, DataRank())
    assert results[SIMULATION][MODEL]["parse_failure"]["all"] == 1.0


@pytest.mark.slow
def test_a_scene_that_cannot_be_simulated_is_left_out_and_counted(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def spoilt(source: object, limit: int | None = None) -> list[Scene]:
        first, *others = read_scenes(source, limit)
        assert first.surroundings is not None
        wrong = dataclasses.replace(first.surroundings, speed_limit=-1.0)
        return [dataclasses.replace(first, surroundings=wrong), *others]

    simulated: Any = setting.train.evals["simulated_hard"]
    for module, evaluator in ((closed_loop, setting.evaluator), (open_loop, simulated)):
        caplog.clear()
        read_scenes = module.read_scenes
        monkeypatch.setattr(module, "read_scenes", spoilt)
        results, examples = evaluator.evaluate(setting.model, setting.train.data, DataRank())
        measured = results[SIMULATION][MODEL]
        assert measured["left_out"]["all"] == 1.0
        assert measured["scenes"]["all"] == SCENES - 1
        assert len(examples) == SCENES - (module is closed_loop)
        assert "is left out of the evaluation" in caplog.text
        assert "surroundings.speed_limit" in caplog.text


@pytest.mark.guarantee("Closed-loop evaluation replans with the model on every rank, and counts failed plans")
def test_plans_that_cannot_be_driven_are_counted_by_kind(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    def absurd(driver: Driver, scenes: Sequence[Scene]) -> Answers:
        sound = np.zeros((20, 4))
        plans = [Trajectory(sound * np.nan, 4.0), Trajectory(sound, 10.0), Trajectory(sound[:2], 4.0)]
        return Answers([""] * len(scenes), [*plans][: len(scenes)])

    monkeypatch.setattr(Driver, "answer", absurd)
    results, _ = setting.evaluator.evaluate(setting.model, setting.train.data, DataRank())
    measured = results[SIMULATION][MODEL]
    assert measured["parse_failure"]["all"] == 1.0
    kinds = {name: by["all"] for name, by in measured.items() if name.startswith("fault/")}
    assert kinds == pytest.approx({"fault/not_finite": 1 / 3, "fault/rate": 1 / 3, "fault/length": 1 / 3})


@pytest.mark.guarantee("The dynamics that a recipe chooses execute plans in rewards and evaluations")
def test_dynamics_of_the_recipe_reach_training_and_both_evaluators(setting: Setting) -> None:
    stage, simulated = next(setting.train.curriculum.stage_ranges()).stage, setting.train.evals["simulated_hard"]
    assert isinstance(stage, PolicyStage)
    assert isinstance(simulated, OpenLoopEvaluator)
    assert isinstance(setting.evaluator.environment, Simulator)
    for simulator in (stage.simulator, simulated.simulator, setting.evaluator.environment):
        assert isinstance(simulator.dynamics, Bicycle)


def test_what_cannot_be_driven_is_refused(setting: Setting) -> None:
    with pytest.raises(ValueError, match="Simulator is given no scenes"):
        dataclasses.replace(setting.evaluator, source=None)
    with pytest.raises(ValueError, match="replan_every 0"):
        dataclasses.replace(setting.evaluator, replan_every=0)
    with pytest.raises(ValueError, match="task detect has no plan"):
        dataclasses.replace(setting.evaluator, task="detect").evaluate(setting.model, setting.train.data, DataRank())


@pytest.mark.guarantee("Closed-loop evaluation replans with the model on every rank, and counts failed plans")
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_ranks_of_one_model_drive_as_one_process_does(tmp_path: Path) -> None:
    found = {}
    for ranks in (1, 2):
        out = tmp_path / f"{ranks}.json"
        run_ranks(ranks, functools.partial(drive, str(tmp_path), ranks, out))
        found[ranks] = json.loads(out.read_text())
    assert math.isfinite(found[1]["progress"]["all"])
    assert found[2] == {metric: pytest.approx(sliced, abs=1e-4) for metric, sliced in found[1].items()}
