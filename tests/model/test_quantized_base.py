"""Adapters over quantised weights: the formats, both passes, checkpoints, merging, and what they save."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from framework.checkpoint.store import CheckpointStore
from framework.checkpoint.tensors import unchanged_by_forward
from framework.model.flops import ForwardFlops, TrainingFlops
from framework.model.freeze import set_trainable
from framework.model.hf_export import export
from framework.model.language_action import LanguageActionModel
from framework.model.lora import adapter_parameters, merge_adapters, merged_tensors
from framework.model.param_groups import parameter_groups
from framework.model.quantized_base import (
    GROUP,
    BaseFormat,
    QuantizedLinear,
    dense,
    dequantized,
    levels,
    quantized,
    quantized_layers,
)
from framework.model.weights import added_parameters
from framework.run.layout import CHECKPOINTS
from framework.training.planner.trace import Allocations
from framework.training.tasks.newest_weights import load_newest
from tests.model.exports import load_export
from tests.model.test_lora import LORA, answer, build, gradients, learned

FORMATS: tuple[BaseFormat, ...] = ("int8", "nf4")
PUBLISHED = [
    -1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0, 0.0795803, 0.1609302,
    0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
]  # fmt: skip
"""Appendix E of the paper."""


def quantised(base: BaseFormat) -> LanguageActionModel:
    """The tiny model with trained adapters over a quantised base."""
    return learned(build(dataclasses.replace(LORA, base=base)))


def plain_twin(base: BaseFormat) -> LanguageActionModel:
    """The same with plain layers that hold what the quantised ones compute with."""
    twin, ours = learned(build()), dict(quantised(base).named_modules())
    with torch.no_grad():
        for name, module in twin.named_modules():
            if isinstance(layer := ours.get(name), QuantizedLinear):
                assert isinstance(module, nn.Linear)
                module.weight.copy_(dense(layer))
    return twin


def test_the_levels_are_the_published_ones() -> None:
    assert levels(torch.device("cpu")).tolist() == pytest.approx(PUBLISHED, abs=2e-7)


@pytest.mark.parametrize("base", FORMATS)
def test_each_code_is_the_nearest_value_and_survives_another_rounding(base: BaseFormat) -> None:
    weight = torch.randn(6, 2 * GROUP, generator=torch.Generator().manual_seed(0))
    weight[0, :GROUP] = 0.0
    codes, scales = quantized(weight, base)
    found = dequantized(codes, scales, base, torch.float32)
    if base == "int8":
        rows, values = weight, torch.arange(-127, 128) / 127
    else:
        rows, values = weight.view(-1, GROUP), levels(torch.device("cpu"))
    largest = rows.abs().amax(dim=1, keepdim=True)
    nearest = (rows[..., None] - largest[..., None] * values).abs().amin(dim=-1)
    torch.testing.assert_close((found.view_as(rows) - rows).abs(), nearest, rtol=1e-4, atol=1e-6)
    assert all(map(torch.equal, quantized(found, base), (codes, scales)))
    assert not bool(found[0, :GROUP].any())


@pytest.mark.parametrize(("base", "bits"), [("int8", 8.25), ("nf4", 4.5)])
def test_bits_of_a_weight(base: BaseFormat, bits: float) -> None:
    codes, scales = quantized(torch.randn(32, 2 * GROUP), base)
    assert 8 * (codes.nbytes + scales.nbytes) / (32 * 2 * GROUP) == bits


def test_torchaos_nf4_has_the_same_values() -> None:
    nf4 = pytest.importorskip("torchao.dtypes.nf4tensor", reason="torchao is not installed (extra float8)")
    weight = torch.randn(64, 4 * GROUP, generator=torch.Generator().manual_seed(0))
    theirs = nf4.NF4Tensor.from_tensor(weight, GROUP, 256).get_original_weight()  # its scales are of 8 bits
    ours = dequantized(*quantized(weight, "nf4"), "nf4", torch.float32)
    assert float((ours - weight).norm() / weight.norm()) < 1.02 * float((theirs - weight).norm() / weight.norm())
    assert float((ours - theirs).norm() / weight.norm()) < 0.02


@pytest.mark.parametrize("base", FORMATS)
def test_both_passes_are_those_of_the_weight_that_the_codes_stand_for(base: BaseFormat) -> None:
    model, twin = quantised(base), plain_twin(base)
    torch.testing.assert_close(answer(model), answer(twin), rtol=1e-5, atol=1e-5)
    for each in (model, twin):
        set_trainable(each, [])
    found, expected = gradients(model), gradients(twin)
    assert found.keys() == expected.keys() == adapter_parameters(model).keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)


def test_no_dense_weight_is_kept_for_the_backward_pass() -> None:
    layer = quantised("nf4").backbone.model.language_model.layers[0].mlp.up_proj
    inputs = torch.randn(1, layer.in_features, requires_grad=True)
    with Allocations([*layer.parameters(), *layer.buffers(), inputs]) as held:
        outputs = layer(inputs)
        kept = held.current
        outputs.sum().backward()
    dense_bytes = 4 * layer.in_features * layer.out_features
    assert kept < 0.05 * dense_bytes < dense_bytes <= held.peak


@pytest.mark.parametrize("base", FORMATS)
@pytest.mark.slow
def test_merged_weights_give_the_same_answers_under_the_plain_names(base: BaseFormat, tmp_path: Path) -> None:
    model, plain = quantised(base), build(None)
    weights, expected = dict(merged_tensors(model.backbone)), answer(model)
    assert list(weights) == list(plain.backbone.state_dict())
    plain.backbone.load_state_dict(weights)
    torch.testing.assert_close(answer(plain), expected, rtol=1e-5, atol=1e-5)
    exported = quantised(base)
    export(exported, tmp_path)
    assert not quantized_layers(exported)
    torch.testing.assert_close(answer(exported), expected, rtol=1e-5, atol=1e-5)
    read_back = build(None, seed=1)
    load_export(tmp_path, read_back)
    torch.testing.assert_close(answer(read_back), expected, rtol=1e-5, atol=1e-5)
    merge_adapters(model)
    torch.testing.assert_close(answer(model), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("base", FORMATS)
@pytest.mark.slow
def test_a_checkpoint_holds_the_codes_and_continues_with_the_same_bits(base: BaseFormat, tmp_path: Path) -> None:
    def trained(steps: int, store: CheckpointStore | None = None, resume: bool = False) -> LanguageActionModel:
        model = quantised(base)
        set_trainable(model, [])
        optimizer = torch.optim.AdamW(parameter_groups(model, 1e-2, 0.0, {}))
        if resume and store is not None:
            for parameter in adapter_parameters(model).values():
                nn.init.zeros_(parameter)
            newest = store.resume(2)
            assert newest is not None
            store.load(newest, model, optimizer)
        for step in range(steps):
            gradients(model)
            optimizer.step()
            optimizer.zero_grad()
            if store is not None and not resume and step == 1:
                store.save(2, 1, model, optimizer, {}, {})
        return model

    with CheckpointStore(tmp_path) as store:
        whole = trained(4, store)
        continued = trained(2, store, resume=True)
    assert torch.equal(answer(whole), answer(continued))
    names = set(whole.state_dict())
    assert any(name.endswith(".codes") for name in names)
    assert {f"model/{name}" for name in names if name.endswith((".codes", ".scales"))} <= unchanged_by_forward(whole)


@pytest.mark.parametrize("with_adapters", [False, True])
def test_a_run_with_plain_weights_may_come_before(with_adapters: bool, tmp_path: Path) -> None:
    plain = learned(build()) if with_adapters else build(None, seed=1)
    with CheckpointStore(tmp_path / CHECKPOINTS) as store:
        store.save(1, 1, plain, torch.optim.SGD(plain.parameters(), 1.0), {}, {})
    model = build(dataclasses.replace(LORA, base="int8"))
    load_newest(tmp_path, model, new=added_parameters(model))
    gap = (answer(model) - answer(plain)).norm() / answer(plain).norm()
    assert 0.0 < float(gap) < 0.02
    assert len(quantized_layers(model)) == 7 * len(model.backbone.model.language_model.layers)


def test_frozen_weights_count_where_flops_and_shares_do() -> None:
    forward = ForwardFlops(*range(1, 1 + len(dataclasses.fields(ForwardFlops))))
    found = []
    for model in (quantised("nf4"), learned(build())):
        shares = set_trainable(model, ["*embed_tokens.weight"])
        found.append((shares, TrainingFlops(model).of(forward)))
    assert found[0] == found[1]


def test_rows_that_are_no_whole_groups_are_refused() -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(40, 8)

    small = Small()
    with pytest.raises(ValueError, match=r"model\.adapters\.base: nf4 of layer: rows of 40 weights .* choose int8"):
        dataclasses.replace(LORA, layers=["layer"], base="nf4").attach(small)
    small = Small()
    inputs, weight, bias = torch.randn(3, 40), small.layer.weight.detach().clone(), small.layer.bias
    dataclasses.replace(LORA, layers=["layer"], base="int8").attach(small)
    torch.testing.assert_close(small.layer(inputs), F.linear(inputs, weight, bias), rtol=0.0, atol=0.02)
