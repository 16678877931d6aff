"""Answers to the tasks of training, with the confidences that their tokens' probabilities give."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from framework.model.generate import Completion
from framework.parallel.mesh import DataRank
from framework.recipe.catalogue import Catalogue
from framework.recipe.compose import compose
from framework.recipe.instantiate import instantiate
from framework.training.evaluators import tasks
from framework.training.tasks.train import Train


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Train:
    folder = tmp_path_factory.mktemp("tasks")
    words = ["recipe=supervised", "scale=tiny", f"paths.cache={folder}", f"paths.runs={folder}", "evals=[held_out]"]
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

    tasks_sample = tasks.sample
    monkeypatch.setattr(tasks, "sample", watched)
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
