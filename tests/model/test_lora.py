"""Low-rank adapters against the formula, peft where it is installed, and the model without them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import Qwen3VLForConditionalGeneration

from framework.model.backbone import RandomBackbone
from framework.model.freeze import set_trainable
from framework.model.hf_export import export
from framework.model.language_action import LanguageActionModel
from framework.model.lora import (
    LoRA,
    adapted_layers,
    adapter_parameters,
    adapters_have_effect,
    merge_adapters,
    merged_tensors,
    without_adapters,
)
from framework.model.param_groups import parameter_groups
from framework.model.tensor_plan import refuse_adapters
from framework.objective.supervised import CrossEntropy, next_token_positions
from framework.parallel.compilation import Compilation
from framework.parallel.precision import Precision
from framework.parallel.recompute import Recompute
from tests.model.exports import load_export
from tests.model.presets import preset
from tests.parallel.tiny import words

LAYERS = "backbone.model.language_model.layers.*_proj"
LORA = LoRA([LAYERS], rank=4, alpha=6.0, lr_factor=10.0)
ARCHITECTURE = preset("model/backbone/tiny.yaml")["architecture"]


def build(adapters: LoRA | None = LORA, seed: int = 0) -> LanguageActionModel:
    torch.manual_seed(seed)
    return LanguageActionModel(RandomBackbone(ARCHITECTURE), adapters=adapters)


def learned(model: LanguageActionModel) -> LanguageActionModel:
    """As if the adapters had been trained."""
    generator = torch.Generator().manual_seed(7)
    for parameter in adapter_parameters(model).values():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return model


def answer(model: LanguageActionModel) -> Tensor:
    with torch.no_grad():
        return model.head(model(words(rows=2, length=16)))


def gradients(model: LanguageActionModel) -> dict[str, Tensor]:
    batch = words(rows=2, length=16)
    positions, targets = next_token_positions(batch["labels"])
    CrossEntropy()(model(batch, positions), model.head, targets).total.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.guarantee(
    "A new adapter changes no answer; answers and gradients equal peft's; merged weights give the same answers"
)
def test_a_model_begins_as_the_one_without() -> None:
    model, plain = build(), build(None)
    assert len(adapted_layers(model)) == 7 * ARCHITECTURE["text"]["num_hidden_layers"]
    assert torch.equal(answer(model), answer(plain))
    assert not adapters_have_effect(model)
    assert all(bool(layer.adapter.down.any()) for layer in adapted_layers(model).values())


def test_a_layer_gives_what_the_formula_says() -> None:
    model = learned(build())
    layer = model.backbone.model.language_model.layers[1].mlp.up_proj
    inputs = torch.randn(3, 5, layer.in_features)
    weight, down, up = (p.detach().double().numpy() for p in (layer.weight, layer.adapter.down, layer.adapter.up))
    expected = inputs.double().numpy() @ (weight + 6.0 / 4 * up @ down).T
    torch.testing.assert_close(layer(inputs).double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.guarantee(
    "A new adapter changes no answer; answers and gradients equal peft's; merged weights give the same answers"
)
@pytest.mark.parametrize("recompute", [Recompute(every=None), Recompute(), Recompute(kept={"linear": 2})])
def test_gradients_reach_the_adapters_alone(recompute: Recompute) -> None:
    model, plain = learned(build()), learned(build())
    for each in (model, plain):
        set_trainable(each, [])
    recompute.apply(model.blocks())
    found, expected = gradients(model), gradients(plain)
    assert found.keys() == adapter_parameters(model).keys()
    for name, gradient in expected.items():
        assert bool(gradient.any())
        assert torch.equal(found[name], gradient)


@pytest.mark.guarantee(
    "A new adapter changes no answer; answers and gradients equal peft's; merged weights give the same answers"
)
def test_peft_gives_the_same_answers_and_gradients() -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model, plain = learned(build()), build(None)
    names = [name for name, module in plain.named_modules() if "language_model.layers" in name and name[-5:] == "_proj"]
    theirs = peft.get_peft_model(plain, peft.LoraConfig(r=4, lora_alpha=6, target_modules=names))
    pairs = {
        f"{name}.adapter.{ours}": getattr(module, key)["default"].weight
        for name, module in plain.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
        for ours, key in (("down", "lora_A"), ("up", "lora_B"))
    }
    mine = adapter_parameters(model)
    assert pairs.keys() == mine.keys()
    with torch.no_grad():
        for name, weight in pairs.items():
            weight.copy_(mine[name])
    torch.testing.assert_close(answer(model), answer(theirs.base_model.model), rtol=1e-5, atol=1e-5)
    set_trainable(model, [])
    found = gradients(model)
    gradients(plain)
    for name, weight in pairs.items():
        assert float((found[name] - weight.grad).norm()) < 1e-5 * float(weight.grad.norm())


@pytest.mark.guarantee(
    "A new adapter changes no answer; answers and gradients equal peft's; merged weights give the same answers"
)
def test_merged_weights_give_the_same_answers_under_the_plain_names() -> None:
    model, plain = learned(build()), build(None)
    weights, expected = dict(merged_tensors(model.backbone)), answer(model)
    assert list(weights) == list(plain.backbone.state_dict())
    assert float((expected - answer(plain)).abs().max()) > 0.1
    plain.backbone.load_state_dict(weights)
    torch.testing.assert_close(answer(plain), expected, rtol=1e-5, atol=1e-5)
    merge_adapters(model)
    assert adapted_layers(model) == {}
    assert torch.equal(answer(model), answer(plain))


def test_without_adapters_it_is_the_plain_model_and_afterwards_itself() -> None:
    model, plain = learned(build()), build(None)
    before = answer(model)
    with without_adapters(model):
        assert torch.equal(answer(model), answer(plain))
    assert torch.equal(answer(model), before)
    assert adapters_have_effect(model)


def test_an_export_is_a_plain_model(tmp_path: Path) -> None:
    model = learned(build())
    expected = answer(model)
    export(model, tmp_path)
    plain = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert not any("adapter" in name for name in plain.state_dict())
    with torch.no_grad():
        logits = plain(input_ids=words(rows=2, length=16)["input_ids"]).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    again = build(seed=1)
    load_export(tmp_path, again)
    torch.testing.assert_close(answer(again), expected, rtol=1e-4, atol=1e-5)


TRAINED: dict[str, tuple[list[str], Callable[[str], bool]]] = {
    "nothing else": ([], lambda name: False),
    "all": (["*"], lambda name: not name.endswith("_proj.weight")),
    "vision": (["*visual*"], lambda name: "visual" in name),
    "their own layers": (["*_proj.weight"], lambda name: False),
}


@pytest.mark.parametrize("patterns", TRAINED)
def test_adapters_train_and_the_layers_below_them_do_not(patterns: str) -> None:
    model, (chosen, others) = build(), TRAINED[patterns]
    set_trainable(model, chosen)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    pairs = set(adapter_parameters(model))
    assert pairs <= trained
    assert trained - pairs == {name for name, _ in model.named_parameters() if name not in pairs and others(name)}


def test_a_stage_may_leave_them_alone() -> None:
    model = build()
    set_trainable(model, ["*embed_tokens*", "!*.adapter.*"])
    assert [n for n, p in model.named_parameters() if p.requires_grad] == [
        "backbone.model.language_model.embed_tokens.weight"
    ]
    with pytest.raises(ValueError, match="no parameter is left to train"):
        set_trainable(model, ["!*.adapter.*"])


def test_they_learn_at_a_rate_of_their_own_unless_the_stage_gives_one() -> None:
    model = build()
    set_trainable(model, ["*embed_tokens*"])

    def rates(factors: dict[str, float]) -> dict[str, float]:
        names = {id(p): name for name, p in model.named_parameters()}
        groups = parameter_groups(model, 1e-3, 0.1, factors)
        return {names[id(p)].rpartition(".")[2]: group["lr"] for group in groups for p in group["params"]}

    assert rates({}) == pytest.approx({"down": 1e-2, "up": 1e-2, "weight": 1e-3})
    assert rates({"*.up": 2.0}) == pytest.approx({"down": 1e-2, "up": 2e-3, "weight": 1e-3})


@pytest.mark.parametrize("pattern", ["*qproj", "*embed_tokens", "*.adapter"])
def test_a_pattern_that_matches_no_linear_layer_is_told(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"model\.adapters\.layers: .* matches no linear layer; the nearest are"):
        build(LoRA([LAYERS, pattern]))


def test_a_layer_that_shares_its_weight_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.adapters\.layers: backbone\.lm_head shares its weight"):
        build(LoRA(["*lm_head"]))


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"alpha": 0.0}])
def test_numbers_that_make_no_adapter_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"model\.adapters: rank"):
        dataclasses.replace(LORA, **wrong)


def test_they_are_not_cut_by_tensor_parallelism() -> None:
    refuse_adapters(build(None))
    with pytest.raises(
        ValueError, match=r"parallel\.mesh\.tensor: tensor parallelism does not shard low-rank adapters"
    ):
        refuse_adapters(build())


def test_in_bfloat16_answers_are_the_merged_models_to_its_precision() -> None:
    model = learned(build())
    exact = answer(model)
    Precision("bfloat16", "bfloat16").cast(model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    error = (answer(model).float() - exact).square().mean().sqrt()
    assert float(error) < 0.03 * float(exact.square().mean().sqrt())


def test_on_the_meta_device_there_are_shapes_alone() -> None:
    with torch.device("meta"):
        skeleton = build()
    sizes = {name: tuple(p.shape) for name, p in build().named_parameters()}
    assert {name for name, p in skeleton.named_parameters() if not p.is_meta} == set()
    pairs = adapter_parameters(skeleton)
    assert {name: tuple(p.shape) for name, p in pairs.items()} == {name: sizes[name] for name in pairs}


@pytest.mark.slow
def test_blocks_that_are_compiled_give_the_same_and_share_one_compilation() -> None:
    model, plain = learned(build()), learned(build())
    layers = model.backbone.model.language_model.layers
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    Compilation("blocks", "aot_eager").apply(model, layers)
    torch.testing.assert_close(answer(model), answer(plain), rtol=1e-4, atol=1e-5)
    with without_adapters(model), without_adapters(plain):
        torch.testing.assert_close(answer(model), answer(plain), rtol=1e-4, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2, "one with the adapters, one without"
