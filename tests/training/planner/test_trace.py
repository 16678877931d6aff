"""The trace runs one of several modules that are alike, and finds what all of them would have found."""

from __future__ import annotations

import itertools

import pytest
import torch

from framework.model.language_action import LanguageActionModel
from framework.objective.supervised import CrossEntropy
from framework.parallel.recompute import Recompute
from framework.recipe.catalogue import Catalogue
from framework.recipe.compose import compose
from framework.recipe.instantiate import instantiate
from framework.training.planner import trace
from framework.training.planner.trace import MicroBatchShape, PassMemory, trace_micro_batch

SHAPE = MicroBatchShape(2, 128, True, 48, 60, {"lidar": (2, 512), "ego": (2, 7)})


def _passes(every: int | None) -> list[PassMemory]:
    composition = compose(["recipe=demo", "scale=tiny"], Catalogue())
    with torch.device("meta"):
        model: LanguageActionModel = instantiate(composition, ("model",))()
    Recompute(every).apply(model.blocks())
    return trace_micro_batch(model, CrossEntropy(), SHAPE, bf16=True, autocast=True)


@pytest.mark.slow
@pytest.mark.parametrize("every", [None, 2])
def test_modules_that_are_alike_need_what_the_first_of_them_needs(
    every: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = _passes(every)
    numbers = itertools.count()
    monkeypatch.setattr(trace, "signature", lambda module, inputs: next(numbers))
    assert _passes(every) == shared
    assert {part.name for part in shared} >= {"vision block 1", "block 0", "block 3", "loss", "lidar encoder"}
    assert next(numbers) == len(shared) - 1, "each part but the mask is run by itself"


@pytest.mark.slow
def test_stages_of_the_same_shape_share_a_trace() -> None:
    composition = compose(["recipe=demo", "scale=tiny"], Catalogue())
    traced: trace.Traced = {}
    found, sizes = [], []
    for _ in range(2):
        with torch.device("meta"):
            model: LanguageActionModel = instantiate(composition, ("model",))()
        found.append(trace_micro_batch(model, CrossEntropy(), SHAPE, bf16=False, autocast=False, traced=traced))
        sizes.append(len(traced))
    assert found[0] == found[1]
    assert sizes[0] == sizes[1] > 0
