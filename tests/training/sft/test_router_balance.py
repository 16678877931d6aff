"""The routers' loss of a step: its coefficient, its denominator and what fills up a rank's micro-batches."""

from __future__ import annotations

import pytest
import torch

from framework.model.backbone import RandomBackbone
from framework.model.language_action import LanguageActionModel
from framework.model.routers import RouterRecord
from framework.objective.expert_balance import balance_metrics, expert_balance
from framework.parallel.mesh import DataRank
from framework.training.sft.router_balance import RouterBalance
from tests.model.presets import preset


def model(name: str, **more: float) -> LanguageActionModel:
    architecture = preset(f"model/backbone/{name}.yaml")["architecture"]
    with torch.device("meta"):
        return LanguageActionModel(RandomBackbone(architecture, **more))


def test_the_recipes_coefficient_weighs_the_mean_over_the_steps_samples() -> None:
    record = RouterRecord((torch.randn(6, 8), torch.randn(6, 8)), torch.tensor([0, 0, 0, 1, 1, -1]))
    loss, tokens = expert_balance(record.logits, record.samples, top_k=2)
    balance = RouterBalance(model("tiny_moe", router_loss=0.5), samples=5, dp_rank=DataRank())
    assert float(balance.add(record, counts=True)) == pytest.approx(0.5 * float(loss) / 5)
    assert float(balance.add(record, counts=False)) == 0.0
    assert float(balance.add(record, counts=True)) == pytest.approx(0.5 * float(loss) / 5)
    expected = {"experts/balance_loss": 2 * float(loss) / 5, **balance_metrics(2 * tokens)}
    found = {name: float(value) for name, value in balance.metrics().items()}
    assert found == pytest.approx({name: float(value) for name, value in expected.items()})


def test_the_architectures_own_coefficient_holds_without_another() -> None:
    assert model("tiny_moe").router_loss == 0.001


def test_without_experts_there_is_none() -> None:
    balance = RouterBalance(model("tiny"), samples=5, dp_rank=DataRank())
    assert balance.add(RouterRecord(), counts=True) == 0.0
    assert balance.metrics() == {}
