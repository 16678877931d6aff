"""Weights come last: each rank's share of a model is that of the whole one, and no rank holds or reads much more."""

from __future__ import annotations

import functools
import itertools
import json
from typing import Any

import pytest
import torch

from framework.model.backbone import RandomBackbone
from framework.model.hf_export import export
from framework.model.language_action import LanguageActionModel
from tests.parallel.filling_ranks import TOKENS, architecture, compare_all
from tests.processes import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RANKS = 4
MESHES = {
    "FSDP": {"replicate": 1, "shard": 4, "tensor": 1},
    "FSDP x TP": {"replicate": 1, "shard": 2, "tensor": 2},
}
KINDS = ("random", "pretrained", "pretrained untied")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Any]]]:
    """What every rank found, after one launch."""
    folder = tmp_path_factory.mktemp("filling")
    for tied in (True, False):
        torch.manual_seed(1)
        # One token fewer than the recipe has: the last is new to the checkpoint.
        export(LanguageActionModel(RandomBackbone(architecture(tied)), {}, TOKENS[:-1]), folder / str(tied))
    run_ranks(RANKS, functools.partial(compare_all, folder, MESHES))
    return [json.loads((folder / f"out.{rank}").read_text()) for rank in range(RANKS)]


@pytest.mark.guarantee("Weights are loaded or initialized shard by shard: no rank holds the whole model")
@pytest.mark.parametrize(("mesh", "kind"), itertools.product(MESHES, KINDS))
def test_no_rank_holds_the_whole_model(mesh: str, kind: str, results: list[dict[str, dict[str, Any]]]) -> None:
    for rank in results:
        found = rank[f"{mesh} {kind}"]
        assert found["different"] == []
        assert found["tied"] == ("untied" not in kind)
        assert found["held"] < 0.5  # its quarter; and one module, or a piece of one, on its way
        assert 0 < found["read"] < 0.5 or kind == "random"
