"""Evaluates a model by its loss on held-out scenes: the expected answers are given, none is generated."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from framework.data.pipeline import DataPipeline
from framework.data.render.collate import collate
from framework.data.render.sample import Sample
from framework.data.stream.mixture import Source, read_scenes
from framework.evaluation.examples import Example
from framework.evaluation.results import LOSS, MODEL, Results
from framework.model.language_action import LanguageActionModel
from framework.objective.normalisation import sum_over_ranks
from framework.objective.supervised import CrossEntropy, next_token_positions
from framework.parallel.mesh import DataRank
from framework.recipe.component import component
from framework.recipe.ranges import Batch, PositiveCount
from framework.scene.types import ALL, Scene, SceneError
from framework.training.evaluators.base import LeftOut, first_scenes, task_of
from framework.training.to_device import to_device


@component
@dataclass(frozen=True)
class LossEvaluator:
    """Cross-entropy (nats) and accuracy of the tokens of expected answers, each token weighing the same.

    A scene that cannot be rendered is left out, named in the log and counted as `left_out`.
    """

    source: Source
    """The scenes."""
    task: str = "converse"
    """The task whose answers are expected. Scenes that do not support it are passed over."""
    scenes: PositiveCount | None = None
    """Number of scenes, the first of the source; None for all."""
    batch_size: Batch = 32
    """Scenes per call of the model."""
    before_training: bool = False
    """Whether to run before the first stage too."""

    def evaluate(
        self, model: LanguageActionModel, data: DataPipeline, dp_rank: DataRank
    ) -> tuple[Results, list[Example]]:
        """See `Evaluator`. There are no examples."""
        device, objective, left_out = next(model.parameters()).device, CrossEntropy(), LeftOut()
        renderer, training = data.renderer(model.processor), model.training
        sums = torch.zeros(4, dtype=torch.float64, device=device)  # loss, correct tokens, tokens, scenes
        mine = itertools.islice(read_scenes(self.source, self.scenes), dp_rank.rank, None, dp_rank.world)
        model.eval()
        with torch.no_grad():
            for samples in self._batches(mine, data, renderer, left_out):
                batch = to_device(collate(samples, renderer.special_ids), device)
                positions, targets = next_token_positions(batch["labels"])
                loss = objective(model(batch, positions), model.head, targets)
                sums += torch.stack(
                    [loss.total.double(), loss.correct.double(), *sums.new_tensor([len(targets), len(samples)])]
                )
        model.train(training)
        total, correct, tokens, scenes = sum_over_ranks(sums, dp_rank.group).tolist()
        results: Results = {}
        if tokens:
            values = {"loss": total / tokens, "token_accuracy": correct / tokens, "scenes": scenes}
            results[LOSS] = {MODEL: {name: {ALL: value} for name, value in values.items()}}
        return left_out.counted(results, LOSS, dp_rank.group), []

    def dry_run(self, data: DataPipeline, processor: Any) -> None:
        """See `DryRunnable`: one of the first scenes that support the task can be rendered."""
        task, renderer, faults = task_of(data, self.task), data.renderer(processor), list[SceneError]()
        for scene in first_scenes(self.source, self.scenes):
            if not task.supports(scene):
                continue
            try:
                renderer.render(scene, task.conversation(scene, self.task))
            except SceneError as error:
                faults.append(error)
            else:
                return
        if faults:
            raise faults[0]
        raise ValueError(
            f"task {self.task}: none of the first scenes of source {self.source.location().remote} supports it; give "
            "a task that they support, or another source"
        )

    def _batches(
        self, scenes: Iterator[Scene], data: DataPipeline, renderer: Any, left_out: LeftOut
    ) -> Iterator[Sequence[Sample]]:
        task = data.tasks[self.task]

        def samples() -> Iterator[Sample]:
            for scene in scenes:
                if not task.supports(scene):
                    continue
                try:
                    rendered = renderer.render(scene, task.conversation(scene, self.task))
                except SceneError as error:
                    left_out.add(scene, error)
                else:
                    yield Sample(rendered, scene, self.task)

        rendered = samples()
        while batch := list(itertools.islice(rendered, self.batch_size)):
            yield batch
