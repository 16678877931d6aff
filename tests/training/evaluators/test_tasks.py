"""Answers to the tasks of training, with the confidences that their tokens' probabilities give."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from framework.data.stream.mixture import read_scenes
from framework.model.flow_head import FlowHead
from framework.model.generate import Completion
from framework.parallel.mesh import DataRank
from framework.recipe.catalogue import Catalogue
from framework.recipe.compose import compose
from framework.recipe.instantiate import instantiate
from framework.training import plans
from framework.training.ask import Asker
from framework.training.evaluators.driver import Driver
from framework.training.tasks.train import Train
from tests.worlds import worlds


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Train:
    folder = tmp_path_factory.mktemp("tasks")
    words = ["recipe=supervised", "scale=tiny", f"paths.cache={worlds()}", f"paths.runs={folder}", "evals=[held_out]"]
    words += ["codecs/boxes=references", "model.encoders.boxes.references=${data.sensors.boxes.max_boxes}"]
    made = instantiate(compose([*words, "sources.world_held_out.scenes=3"], Catalogue()))
    assert isinstance(made, Train)
    return made


def test_boxes_have_the_probability_of_their_class(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    held_out: Any = train.evals["held_out"]
    evaluator = dataclasses.replace(held_out, tasks={"detect": 40})
    model = train.model(special_tokens=train.data.special_tokens)
    answered: list[Completion] = []

    def watched(*arguments: Any) -> list[Completion]:
        answered.extend(given := tasks_sample(*arguments))
        return given

    tasks_sample = plans.sample
    monkeypatch.setattr(plans, "sample", watched)
    results, examples = evaluator.evaluate(model, train.data, DataRank())
    assert results["detect"]["model"]["scenes"]["all"] == 3.0
    assert "map_present" in results["detect"]["perception"]
    for example, completion in zip(examples, answered, strict=True):
        boxes = example.boxes()
        words = completion.text.split("|><|")
        chances = [math.exp(p) for word, p in zip(words, completion.logprobs, strict=False) if "class_" in word]
        # A model that has learned nothing may refer to boxes that the prompt does not show.
        assert boxes is None or boxes.scores.tolist() == pytest.approx(chances)


def test_an_input_that_is_not_shown_is_no_input(train: Train) -> None:
    held_out: Any = train.evals["held_out"]
    evaluator = dataclasses.replace(held_out, tasks={"detect": 40}, inputs=["lidar"])
    results, _ = evaluator.evaluate(train.model(special_tokens=train.data.special_tokens), train.data, DataRank())
    assert set(results["detect"]) == {"model"}


def test_plans_are_those_of_the_action_head_wherever_it_is_asked(train: Train) -> None:
    held_out: Any = train.evals["held_out"]
    evaluator = dataclasses.replace(held_out, tasks={"drive": 64}, plan_samples=2)
    model = train.model(special_tokens=train.data.special_tokens)
    in_tokens, _ = evaluator.evaluate(model, train.data, DataRank())
    model.action_head = FlowHead(hidden=model.backbone.config.text_config.hidden_size, width=32, layers=1)
    by_head, examples = evaluator.evaluate(model, train.data, DataRank())
    for results in (in_tokens, by_head):
        measures = results["drive"]["model"]
        assert measures["min_ade"]["all"] < measures["ade"]["all"]
        assert measures["parse_failure"]["all"] == 0.0
    scenes, asker = list(read_scenes(held_out.source, 3)), Asker(model.eval(), train.data)
    answers = Driver(model, train.data, "drive", 64).answer(scenes)
    asked = [("drive", scenes[0]), ("detect", scenes[0]), ("drive", scenes[1])]
    replies = asker.answer([asker.prompt(*each) for each in asked], 40)
    for example, text, plan in zip(examples, *answers, strict=True):
        answer = example.trajectory()
        assert answer is not None
        assert plan is not None
        assert abs(answer.states - plan.states).max() < 1e-4
        spelled = train.data.tasks["drive"].decode(text, example.scene)
        assert abs(spelled.states[:, :2] - plan.states[:, :2]).max() < 1.0, "the text is the nearest in tokens"
    for reply, place in ((replies[0], 0), (replies[2], 1)):
        assert abs(reply.decoded.states - answers.plans[place].states).max() < 1e-4
        assert (reply.tokens, reply.complete) == ((), True)
    assert replies[1].tokens
