"""Rounded weights are those of integers by hand, and are put back."""

from __future__ import annotations

import pytest
import torch

from framework.model.language_action import LanguageActionModel
from framework.model.quantize import Format, quantized, rounded


def test_weights_are_rounded_to_the_nearest_value_of_their_format() -> None:
    row = torch.tensor([[1.27, 0.004, -0.64, 0.016], [0.0, 0.0, 0.0, 0.0]])
    assert rounded(row, "int8", 4)[0].tolist() == pytest.approx([1.27, 0.0, -0.64, 0.02])  # steps of 0.01
    assert rounded(row, "int8", 4)[1].tolist() == [0.0] * 4
    assert rounded(row, "int4", 2)[0].tolist() == pytest.approx([1.27, 0.0, -0.64, 0.64 / 7 * 0])
    assert rounded(torch.tensor([[7.0, 3.4, 3.6, 0.7, 0.35]]), "int4", 3)[0].tolist() == pytest.approx(
        [7.0, 3.0, 4.0, 0.7, 0.4]
    )
    coarse = rounded(torch.tensor([[448.0, 17.0, 1.0]]), "fp8", 4)
    assert coarse[0].tolist() == [448.0, 16.0, 1.0]  # e4m3 has three bits of mantissa: 16, 18, 20, ...
    weights = torch.randn(64, 256, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    formats: tuple[Format, ...] = ("int8", "fp8", "int4")
    gaps = [float((rounded(weights, each, 128) - weights).norm() / weights.norm()) for each in formats]
    assert gaps[0] < 0.01 < gaps[1] < 0.04 < gaps[2] < 0.15
    assert rounded(weights, "int4", 128).unique().numel() <= 64 * 2 * 15


def test_a_models_layers_are_rounded_while_a_block_lasts(model: LanguageActionModel) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with quantized(model, "int4", 32) as share:
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert 0.0 < share < 1.0
    assert changed
    assert all("language_model.layers." in name and "norm" not in name for name in changed)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
