"""An evaluation of rounded weights stands next to that of the model, which is left as it was."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from framework.evaluation.results import MODEL, PERCEPTION
from framework.training.evaluators.quantized import QuantizedEvaluator


class Sums:
    """Reports the sum of the weights, next to a baseline."""

    before_training = False

    def evaluate(self, model: Any, data: Any, dp_rank: Any) -> Any:
        total = float(model.layer.weight.detach().sum())
        return {"drive": {MODEL: {"ade": {"all": total}}, PERCEPTION: {"ade": {"all": 1.0}}}}, ["example"]


class Tiny(nn.Module):
    """The parts of a model that are quantised."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1, bias=False)
        self.layer.weight.data = torch.tensor([[1.27, 0.004]])
        layers = nn.ModuleList([self.layer])
        self.backbone: Any = SimpleNamespace(model=SimpleNamespace(language_model=SimpleNamespace(layers=layers)))


def test_each_format_is_a_method_of_the_same_tables() -> None:
    model: Any = Tiny()
    evaluator: Any = Sums()
    before = model.layer.weight.clone()
    given: Any = None
    results, examples = QuantizedEvaluator(evaluator, ["int8", "int4"], group=8).evaluate(model, given, given)
    drive = {method: sliced["ade"]["all"] for method, sliced in results["drive"].items()}
    assert drive[MODEL] == float(before.detach().sum())
    assert drive["int8"] == drive["int4"] == float(before.detach()[0, 0])  # the small one is rounded away
    assert drive[PERCEPTION] == 1.0
    assert (examples, torch.equal(model.layer.weight, before)) == (["example"], True)
    QuantizedEvaluator(evaluator).dry_run(given, given)  # one that has no dry run passes
