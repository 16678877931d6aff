"""Every family of backbones: packed rows, shared prompts, caches, exports, adapters and parameter counts."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from framework.model.backbone import PretrainedBackbone, RandomBackbone
from framework.model.expert_files import stack_experts
from framework.model.families import FAMILIES
from framework.model.generate import sample
from framework.model.hf_export import export
from framework.model.language_action import LanguageActionModel
from framework.model.lora import LoRA, adapter_parameters, merge_adapters
from framework.model.quantized_base import count_weights
from framework.model.routers import RouterRecord
from framework.model.segments import LANGUAGE, TOWER
from framework.model.shared_prefix import answer_token_positions
from framework.objective.expert_balance import expert_balance
from framework.parallel.recompute import Recompute
from framework.scene.batch import MicroBatch
from framework.training.planner.stage_plan import active_parameters
from tests.model.conftest import NOTHING, build, make_batch
from tests.model.presets import preset

TINY = {"qwen3_vl": "tiny", "qwen3_vl_moe": "tiny_moe", "qwen3_5": "tiny_qwen3_5", "qwen3_5_moe": "tiny_qwen3_5_moe"}
"""The tiny preset of each family."""
SIGHTED = ("Is a pedestrian ahead?", 2, ("ego",))
Passes = tuple[float, dict[str, Tensor]]
"""A loss and the gradients by name."""


def architecture(family: str) -> dict[str, Any]:
    numbers: dict[str, Any] = copy.deepcopy(preset(f"model/backbone/{TINY[family]}.yaml")["architecture"])
    return numbers


@functools.cache
def model_of(family: str) -> LanguageActionModel:
    """A tiny model whose layers are strong enough for answers that are no repetition."""
    model = build(preset=TINY[family])
    with torch.no_grad():
        for weight in model.backbone.model.language_model.layers.parameters():
            weight.mul_(6.0 if weight.ndim > 1 else 1.0)
    return model


@pytest.fixture(params=TINY)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_family_has_a_tiny_preset() -> None:
    assert TINY.keys() == FAMILIES.keys()


def passes(
    model: LanguageActionModel, batch: MicroBatch, sources: tuple[Tensor, Tensor], targets: Tensor, balanced: bool
) -> Passes:
    """The summed loss of `targets` after the positions `sources`, with the routers' loss where it is to be `balanced`,
    and the gradients."""
    model.zero_grad()
    routers = RouterRecord()
    logits = model.head(model(batch, routers=routers)[sources])
    loss = F.cross_entropy(logits, targets, reduction="sum")
    if balanced and routers.logits:
        loss = loss + expert_balance(routers.logits, routers.samples, top_k=2)[0]
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(ours: Passes, expected: Passes) -> None:
    """Losses to 1e-5; gradients to 1e-4, as a share of each or, where it is nearly zero, to 1e-6 of all."""
    assert ours[0] == pytest.approx(expected[0], rel=1e-5)
    assert ours[1].keys() == expected[1].keys()
    whole = torch.stack([gradient.norm() for gradient in expected[1].values()]).norm()
    for name, gradient in expected[1].items():
        assert (ours[1][name] - gradient).norm() < 1e-4 * gradient.norm() + 1e-6 * whole, name


def in_one_row(padded: MicroBatch) -> MicroBatch:
    """The samples of right-padded rows one behind the other, and three positions of padding."""
    real = padded["attention_mask"].bool()
    packed = padded.copy()
    for key in ("input_ids", "attention_mask", "mm_token_type_ids"):
        packed[key] = F.pad(padded[key][real], (0, 3))[None]
    numbers = torch.arange(1, len(real) + 1)[:, None].expand_as(real)[real]
    packed["segments"] = F.pad(numbers, (0, 3))[None]
    return packed


@pytest.mark.guarantee("Every family of backbones packs, shares prompts, caches, exports, adapts and is counted")
@pytest.mark.fast_cases(1)
def test_packed_rows_give_the_loss_and_gradients_of_padded_ones(family: str) -> None:
    model = model_of(family)
    padded = make_batch(model, [SIGHTED, NOTHING, ("Where to?", 1, ())], side="right")
    real = padded["attention_mask"].bool()
    targets = padded["input_ids"][:, 1:][real[:, 1:]]
    rows, columns = real[:, 1:].nonzero(as_tuple=True)
    expected = passes(model, padded, (rows, columns), targets, balanced=True)
    starts = F.pad(real.sum(dim=1).cumsum(dim=0), (1, 0))
    ours = passes(model, in_one_row(padded), (rows * 0, columns + starts[rows]), targets, balanced=True)
    assert_same(ours, expected)


@pytest.mark.guarantee("Every family of backbones packs, shares prompts, caches, exports, adapts and is counted")
def test_a_change_in_one_packed_sample_changes_nothing_of_the_others(family: str) -> None:
    model = model_of(family)
    packed = in_one_row(make_batch(model, [SIGHTED, NOTHING, ("Where to?", 1, ())], side="right"))
    with torch.no_grad():
        before = model(packed)
        packed["pixel_values"][: int(packed["image_grid_thw"][0].prod())] += 1.0
        after = model(packed)
    changed = (before - after).abs().amax(dim=-1)
    assert changed[packed["segments"] == 1].max() > 0.01
    # Experts multiply the tokens that they are given together: rounding alone may differ.
    assert changed[packed["segments"] > 1].max() <= (1e-5 if FAMILIES[family].experts else 0.0)


@pytest.mark.parametrize("family", ["qwen3_vl_moe", "qwen3_5_moe"])
def test_recomputed_blocks_give_the_same_with_the_loss_of_their_routers(family: str) -> None:
    batch = make_batch(model_of(family), [("Where to?", 1, ())])
    columns = torch.arange(batch["input_ids"].shape[1] - 1)
    results = []
    for every in (None, 1):
        model = build(preset=TINY[family])
        Recompute(every=every).apply(model.blocks())
        results.append(passes(model, batch, (columns * 0, columns), batch["input_ids"][0, 1:], balanced=True))
    assert_same(results[1], results[0])


def behind_prompts(prompts: MicroBatch, answers: list[list[Tensor]]) -> MicroBatch:
    """Right-padded prompts, each with its answers behind it."""
    rows = [
        (torch.cat([ids[real.bool()], *own]), torch.cat([kinds[real.bool()], *(each * 0 for each in own)]),
         torch.cat([ids[real.bool()] * 0, *(each * 0 + number for number, each in enumerate(own, start=1))]))
        for ids, real, kinds, own in zip(
            prompts["input_ids"], prompts["attention_mask"], prompts["mm_token_type_ids"], answers, strict=True
        )
    ]  # fmt: skip
    batch = prompts.copy()
    keys = ("input_ids", "mm_token_type_ids", "shared_prefix")
    for key, values in zip(keys, zip(*rows, strict=True), strict=True):
        batch[key] = torch.nn.utils.rnn.pad_sequence(list(values), batch_first=True)
    lengths = torch.tensor([len(ids) for ids, _, _ in rows])
    batch["attention_mask"] = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    return batch


@pytest.mark.guarantee("Every family of backbones packs, shares prompts, caches, exports, adapts and is counted")
@pytest.mark.fast_cases(1)
def test_answers_behind_a_shared_prompt_give_the_loss_and_gradients_of_rows_of_their_own(family: str) -> None:
    model = model_of(family)
    prompts = [SIGHTED, ("Where to?", 1, ())]
    answers = [[torch.tensor([5, 6, 7]), torch.tensor([8, 9])], [torch.tensor([10, 11, 12, 13])]]
    shared = behind_prompts(make_batch(model, prompts, side="right"), answers)
    places, before = answer_token_positions(shared["shared_prefix"], shared["attention_mask"])
    length, targets = shared["input_ids"].shape[1], shared["input_ids"].flatten()[places]
    ours = passes(model, shared, (before // length, before % length), targets, balanced=False)
    loss, gradients = 0.0, {name: torch.zeros_like(gradient) for name, gradient in ours[1].items()}
    for prompt, own in zip(prompts, answers, strict=True):
        for answer in own:
            alone = behind_prompts(make_batch(model, [prompt]), [[answer]])
            del alone["shared_prefix"]
            columns = torch.arange(len(answer)) + alone["input_ids"].shape[1] - len(answer) - 1
            of_answer = passes(model, alone, (columns * 0, columns), answer, balanced=False)
            loss += of_answer[0]
            gradients = {name: total + of_answer[1].get(name, 0.0) for name, total in gradients.items()}
    assert_same(ours, (loss, gradients))


@pytest.mark.guarantee("Every family of backbones packs, shares prompts, caches, exports, adapts and is counted")
@pytest.mark.parametrize("rows", ["padded", "packed", "shared"])
@pytest.mark.fast_cases(4)
def test_attention_by_lengths_is_eager_attention_under_masks(family: str, rows: str) -> None:
    model = model_of(family)
    batch = make_batch(model, [SIGHTED, NOTHING, ("Where to?", 1, ())], side="right")
    if rows == "packed":
        batch = in_one_row(batch)
    if rows == "shared":
        batch = behind_prompts(batch, [[torch.tensor([5, 6, 7]), torch.tensor([8, 9])], [torch.tensor([10])], []])
    real = batch["attention_mask"].bool()
    places = real.nonzero(as_tuple=True)
    targets = batch["input_ids"][places]
    configs = [model.backbone.model.language_model.config, model.backbone.model.visual.config]
    assert [config._attn_implementation for config in configs] == [LANGUAGE, TOWER]
    ours = passes(model, batch, places, targets, balanced=rows != "shared")
    for config in configs:
        config._attn_implementation = "eager"
    try:
        expected = passes(model, batch, places, targets, balanced=rows != "shared")
    finally:
        for config, name in zip(configs, (LANGUAGE, TOWER), strict=True):
            config._attn_implementation = name
    assert_same(ours, expected)


@pytest.mark.guarantee("Every family of backbones packs, shares prompts, caches, exports, adapts and is counted")
@pytest.mark.fast_cases(1)
def test_cached_answers_are_those_of_whole_rows(family: str) -> None:
    model = model_of(family)
    prompts = make_batch(model, [SIGHTED, NOTHING])
    tokenizer = model.processor.tokenizer
    first, second, *_ = sample(
        model, prompts, tokenizer, [None, None], 6, temperature=1.0, seeds=[1, 2, 3, 4], copies=2
    )
    assert first.tokens != second.tokens
    for answer, seed in ((first, 1), (second, 2)):
        alone = make_batch(model, [SIGHTED], side="right")
        batch = behind_prompts(alone, [[torch.tensor(answer.tokens)]])
        del batch["shared_prefix"]
        with torch.no_grad():
            hidden = model(batch)[0, -len(answer.tokens) - 1 : -1]
        banned = torch.tensor(sorted(set(range(model.vocabulary)) - allowed(model)))
        logits = model.head(hidden).index_fill(-1, banned, -torch.inf)
        logprobs = logits.log_softmax(dim=-1).gather(-1, torch.tensor(answer.tokens)[:, None])[:, 0]
        torch.testing.assert_close(logprobs, torch.tensor(answer.logprobs), atol=1e-3, rtol=1e-3)
        (again,) = sample(model, make_batch(model, [SIGHTED]), tokenizer, [None], 6, temperature=1.0, seeds=[seed])
        assert again.tokens == answer.tokens


def allowed(model: LanguageActionModel) -> set[int]:
    from framework.model.codecs.grammar import banned_ids

    return set(range(model.vocabulary)) - set(banned_ids(model.processor.tokenizer, model.vocabulary))


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An export of each family."""
    folders = {name: tmp_path_factory.mktemp(name) for name in TINY}
    for name, folder in folders.items():
        export(model_of(name), folder)
    return folders


@pytest.mark.guarantee("Every family of backbones packs, shares prompts, caches, exports, adapts and is counted")
@pytest.mark.fast_cases(1)
def test_plain_transformers_gives_the_logits_and_answers_of_an_export(family: str, exports: dict[str, Path]) -> None:
    model = model_of(family)
    plain = transformers.AutoModelForImageTextToText.from_pretrained(exports[family]).eval()
    assert type(plain) is FAMILIES[family].network_class()
    batch = make_batch(model, [("Is a pedestrian ahead?", 2, ())])
    inputs = {key: value for key, value in batch.items() if key != "sensors"}
    with torch.no_grad():
        torch.testing.assert_close(plain(**inputs).logits, model.head(model(batch)), atol=1e-4, rtol=1e-4)
    (ours,) = sample(model, batch, model.processor.tokenizer, [None], 12)
    theirs = plain.generate(**inputs, max_new_tokens=12)[0, batch["input_ids"].shape[1] :]
    assert theirs.tolist() == list(ours.tokens)
    assert len(set(ours.tokens)) > 2, "an answer of one token over and over shows nothing"


@pytest.mark.guarantee("Every family of backbones packs, shares prompts, caches, exports, adapts and is counted")
def test_a_folder_tells_its_architecture_and_loads_bit_for_bit(family: str, exports: dict[str, Path]) -> None:
    backbone = PretrainedBackbone(str(exports[family]), attention="eager")
    config = backbone.config()
    assert config.model_type == family
    assert {part._attn_implementation for part in (config.text_config, config.vision_config)} == {"eager"}
    network = backbone.build(backbone.processor())
    expected = dict(model_of(family).backbone.named_parameters())
    rows = len(backbone.processor().tokenizer)  # the others start at their mean
    for name, parameter in network.named_parameters():
        read = slice(rows if "embed_tokens" in name or "lm_head" in name else None)
        assert torch.equal(parameter[read], expected[name][read]), name
    assert PretrainedBackbone(str(exports[family]), architecture(family)).build(None) is not None


@pytest.mark.parametrize("layout", ["transposed", "one by one"])
def test_experts_are_read_in_both_layouts_of_released_files(
    layout: str, exports: dict[str, Path], tmp_path: Path
) -> None:
    family = "qwen3_vl_moe" if layout == "transposed" else "qwen3_5_moe"
    expected = dict(model_of(family).backbone.named_parameters())
    stored: dict[str, Tensor] = {}
    for name, parameter in expected.items():
        if ".experts." not in name:
            stored[name] = parameter
        elif layout == "transposed":
            stored[name] = parameter.transpose(1, 2)
        else:
            for number, weights in enumerate(parameter):
                parts = weights.chunk(2) if "gate_up" in name else (weights,)
                for part, values in zip(("gate", "up") if len(parts) == 2 else ("down",), parts, strict=True):
                    stored[f"{name.rpartition('.')[0]}.{number}.{part}_proj.weight"] = values
    stored["mtp.norm.weight"] = torch.zeros(4)
    if layout == "transposed":
        del stored["mtp.norm.weight"]
    for file in exports[family].iterdir():
        if file.is_file() and file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file({name: tensor.detach().contiguous() for name, tensor in stored.items()}, tmp_path / "model.safetensors")
    backbone = PretrainedBackbone(str(tmp_path))
    for name, parameter in backbone.build(None).named_parameters():
        assert torch.equal(parameter, expected[name]), name


@pytest.mark.guarantee("Every family of backbones packs, shares prompts, caches, exports, adapts and is counted")
@pytest.mark.fast_cases(1)
def test_adapters_train_and_merge(family: str) -> None:
    torch.manual_seed(0)
    mixer = "*linear_attn.in_proj_qkv" if FAMILIES[family].recurrent else "*self_attn.o_proj"
    adapters = LoRA(["*language_model*self_attn.q_proj", mixer], rank=4)
    model = LanguageActionModel(RandomBackbone(architecture(family)), adapters=adapters)
    batch = make_batch(model, [("Is a pedestrian ahead?", 1, ())])
    pairs = adapter_parameters(model)
    optimizer = torch.optim.Adam(pairs.values(), lr=0.02)
    losses = []
    for _ in range(8):
        logits = model.head(model(batch))[0, :-1]
        loss = F.cross_entropy(logits, batch["input_ids"][0, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.98 * losses[0]
    with torch.no_grad():
        adapted = model(batch)
        merge_adapters(model)
        torch.testing.assert_close(model(batch), adapted, atol=1e-5, rtol=1e-4)


@pytest.mark.guarantee("Every family of backbones packs, shares prompts, caches, exports, adapts and is counted")
def test_parameters_are_counted_without_weights_and_the_active_ones_told_apart(family: str) -> None:
    built = model_of(family)
    with torch.device("meta"):
        planned = LanguageActionModel(RandomBackbone(architecture(family)))
    assert count_weights(planned.backbone) == count_weights(built.backbone)
    idle = 0
    if FAMILIES[family].experts:
        text = planned.backbone.config.text_config
        of_one = 3 * text.hidden_size * text.moe_intermediate_size
        idle = text.num_hidden_layers * (text.num_experts - text.num_experts_per_tok) * of_one
    assert active_parameters(planned) == count_weights(planned) - idle


@pytest.mark.parametrize(
    ("name", "billions", "active"),
    [
        ("qwen3_vl_30b_a3b", 31.071, 3.892),
        ("qwen3_5_4b", 4.539, 4.539),
        ("qwen3_5_9b", 9.410, 9.410),
        ("qwen3_5_35b_a3b", 35.107, 3.902),
    ],
)
def test_skeletons_have_the_released_sizes(name: str, billions: float, active: float) -> None:
    with torch.device("meta"):
        model = LanguageActionModel(PretrainedBackbone(**preset(f"model/backbone/{name}.yaml")))
    assert count_weights(model) / 1e9 == pytest.approx(billions, abs=1e-3)
    assert active_parameters(model) / 1e9 == pytest.approx(active, abs=1e-3)


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="router_loss: Qwen3-VL has no experts"):
        RandomBackbone(architecture("qwen3_vl"), router_loss=0.1).build(None)
    with pytest.raises(ValueError, match="no family of the model_type llama; there are qwen3_vl, "):
        RandomBackbone({**architecture("qwen3_vl"), "model_type": "llama"}).build(None)
    square = architecture("qwen3_vl_moe")
    square["text"]["moe_intermediate_size"] = 64
    with pytest.raises(ValueError, match="moe_intermediate_size 64 makes square weights"):
        RandomBackbone(square).build(None)
    facts = RandomBackbone(architecture("qwen3_vl_moe")).config().to_dict()
    facts["text_config"]["moe_intermediate_size"] = facts["text_config"]["hidden_size"] // 2
    (tmp_path / "config.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=f"{tmp_path}: text.moe_intermediate_size .* makes square weights"):
        PretrainedBackbone(str(tmp_path)).config()
    with pytest.raises(ValueError, match=r"config\.json of .*nowhere cannot be read"):
        PretrainedBackbone(str(tmp_path / "nowhere")).config()


def test_a_family_that_transformers_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.__version__", "4.57.6")
    assert FAMILIES["qwen3_vl"].config_class().model_type == "qwen3_vl"
    with pytest.raises(ValueError, match=r"Qwen3\.5 needs transformers 5\.20 or newer, 4\.57\.6 is installed"):
        FAMILIES["qwen3_5"].network_class()


def test_an_expert_without_one_of_its_matrices_is_named(tmp_path: Path) -> None:
    layer, matrix = "model.layers.0.mlp.experts", torch.zeros(2, 2)
    names = [f"{layer}.{expert}.{part}_proj.weight" for expert in range(2) for part in ("gate", "up", "down")]
    sources: Any = {name: matrix for name in names if name != f"{layer}.1.up_proj.weight"}
    with pytest.raises(ValueError, match=rf"{tmp_path}: lacks {layer}\.1\.up_proj\.weight; download"):
        stack_experts(sources, tmp_path)


def test_a_checkpoint_of_another_family_is_refused(exports: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"model_type is qwen3_5, the recipe's model\.backbone\.architecture is of"):
        PretrainedBackbone(str(exports["qwen3_5"]), architecture("qwen3_vl")).build(None)
