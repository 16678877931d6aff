"""Evaluates a model as it is and with quantised weights, on the same scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Interval, MinLen

from framework.data.pipeline import DataPipeline
from framework.evaluation.examples import Example
from framework.evaluation.results import MODEL, Results
from framework.model.language_action import LanguageActionModel
from framework.model.quantize import Format, quantized
from framework.parallel.mesh import DataRank
from framework.recipe.component import component
from framework.training.evaluators.base import DryRunnable, Evaluator

GroupSize = Annotated[int, Interval(ge=8, le=4096)]


@component
@dataclass(frozen=True)
class QuantizedEvaluator:
    """What quantisation costs: an evaluation of the model, and of the model in each format, as methods of the same
    tables.
    """

    evaluator: Evaluator
    """What is evaluated."""
    formats: Annotated[Sequence[Format], MinLen(1)] = ("int8", "fp8", "int4")
    """The formats of the language model's weights."""
    group: GroupSize = 128
    """Weights that share a scale of int4."""
    before_training: bool = False
    """Whether to run before the first stage too."""

    def evaluate(
        self, model: LanguageActionModel, data: DataPipeline, dp_rank: DataRank
    ) -> tuple[Results, list[Example]]:
        """See `Evaluator`. The examples are those of the model as it is."""
        results, examples = self.evaluator.evaluate(model, data, dp_rank)
        for format in self.formats:
            with quantized(model, format, self.group):
                rounded, _ = self.evaluator.evaluate(model, data, dp_rank)
            for section, methods in rounded.items():
                results[section][format] = methods[MODEL]
        return results, examples

    def dry_run(self, data: DataPipeline, processor: Any) -> None:
        """See `DryRunnable`."""
        if isinstance(self.evaluator, DryRunnable):
            self.evaluator.dry_run(data, processor)
