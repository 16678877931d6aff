"""The backbone's numbers, its tokens, and a checkpoint read from a folder."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from framework.model.backbone import PretrainedBackbone, RandomBackbone
from framework.model.hf_export import export
from framework.model.language_action import LanguageActionModel
from framework.model.processor import SENSOR_TOKENS
from tests.model.presets import preset

TEXTS = ("car 12.3 -4.5 0.6\n", '[{"bbox_3d": [12345.1], "label": "cône"}]', "<|accel_1|><|im_end|>\n\n  don't")


def architecture() -> dict[str, Any]:
    numbers: dict[str, Any] = copy.deepcopy(preset("model/backbone/tiny.yaml")["architecture"])
    return numbers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that knows `<|accel_0|>` and `<|accel_1|>`."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoint")
    export(LanguageActionModel(RandomBackbone(architecture()), {}, ["<|accel_0|>", "<|accel_1|>"]), path)
    return path


@pytest.mark.parametrize(
    ("name", "billions", "tied"),
    [("2b", 2.128, True), ("4b", 4.438, True), ("8b", 8.767, False), ("32b", 33.357, False)],
)
def test_skeletons_have_the_released_sizes(name: str, billions: float, tied: bool) -> None:
    arguments = preset(f"model/backbone/qwen3_vl_{name}.yaml")
    with torch.device("meta"):
        skeleton = PretrainedBackbone(**arguments).build(None)
    assert sum(p.numel() for p in skeleton.parameters()) / 1e9 == pytest.approx(billions, abs=1e-3)
    assert (skeleton.get_output_embeddings().weight is skeleton.get_input_embeddings().weight) == tied


def test_drawing_weights_leaves_other_random_numbers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(seed: int) -> None:
        raise AssertionError(f"the devices are seeded with {seed}")

    model = LanguageActionModel(RandomBackbone(architecture()))
    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    before = torch.random.get_rng_state()
    model.init_weights()
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("tied", [True, False])
def test_the_recipe_says_whether_embeddings_are_tied(tied: bool) -> None:
    built = RandomBackbone({**architecture(), "tie_word_embeddings": tied}).build(None)
    assert (built.get_output_embeddings().weight is built.get_input_embeddings().weight) == tied


def test_sensor_tokens_come_first_whatever_is_asked_for() -> None:
    backbone = RandomBackbone(architecture())
    for tokens in ((), ("<|accel_0|>", "<|lidar|>", "<|accel_0|>")):
        tokenizer = backbone.processor(tokens).tokenizer
        ids = tokenizer.convert_tokens_to_ids(list(SENSOR_TOKENS))
        assert ids == list(range(ids[0], ids[0] + len(ids)))
        assert len(tokenizer) == ids[-1] + 1 + len(set(tokens) - set(SENSOR_TOKENS))


def test_spare_rows_are_used_before_the_vocabulary_grows() -> None:
    numbers = architecture()
    backbone = RandomBackbone(numbers)
    rows = numbers["text"]["vocab_size"]
    few = backbone.build(backbone.processor(["<|accel_0|>"]))
    assert few.get_input_embeddings().weight.shape[0] == rows
    many = backbone.build(backbone.processor([f"<|accel_{i}|>" for i in range(rows)]))
    assert many.get_input_embeddings().weight.shape[0] > rows
    assert many.get_output_embeddings().weight is many.get_input_embeddings().weight
    assert many.config.text_config.vocab_size == many.get_input_embeddings().weight.shape[0]


def test_max_pixels_caps_an_image() -> None:
    pixels = torch.zeros(3, 320, 320, dtype=torch.uint8)
    for most, patches in ((64 * 64, 4 * 4), (128 * 128, 8 * 8)):
        processor = RandomBackbone(architecture(), max_pixels=most).processor()
        assert len(processor.image_processor(images=[pixels], return_tensors="pt")["pixel_values"]) == patches


def test_a_checkpoint_keeps_its_rows_and_new_tokens_start_at_their_mean(folder: Path) -> None:
    known = PretrainedBackbone(str(folder), architecture())
    before = known.build(known.processor()).get_input_embeddings().weight
    processor = known.processor(["<|accel_0|>", "<|new|>"])
    count = len(processor.tokenizer) - 1
    after = known.build(processor).get_input_embeddings().weight
    torch.testing.assert_close(after[:count], before[:count], atol=0, rtol=0)
    assert processor.tokenizer.convert_tokens_to_ids("<|new|>") == count
    torch.testing.assert_close(after[count], before[:count].mean(dim=0))


def test_a_checkpoints_tokenizer_reads_as_the_one_it_was_trained_with(folder: Path) -> None:
    ours = RandomBackbone(architecture()).processor(["<|accel_0|>", "<|accel_1|>"]).tokenizer
    theirs = PretrainedBackbone(str(folder), architecture()).processor().tokenizer
    for text in TEXTS:
        assert theirs(text)["input_ids"] == ours(text)["input_ids"]
        assert ours.decode(ours(text)["input_ids"]) == text


def test_a_checkpoint_of_another_size_is_refused(folder: Path) -> None:
    numbers = architecture()
    numbers["text"]["num_hidden_layers"] = 5
    with pytest.raises(ValueError, match=r"architecture\.text\.num_hidden_layers says 5"):
        PretrainedBackbone(str(folder), numbers).build(None)


def test_a_checkpoint_in_half_precision(folder: Path) -> None:
    backbone = PretrainedBackbone(str(folder), architecture(), dtype="bfloat16")
    assert {p.dtype for p in backbone.build(backbone.processor()).parameters()} == {torch.bfloat16}


def test_patches_are_multiplied_as_their_convolution_does() -> None:
    visual = RandomBackbone(preset("model/backbone/tiny.yaml")["architecture"]).build(None).model.visual
    patches = torch.randn(12, 3 * 2 * 16 * 16, generator=torch.Generator().manual_seed(0))
    expected = type(visual.patch_embed).forward(visual.patch_embed, patches)
    assert "forward" in vars(visual.patch_embed)
    torch.testing.assert_close(visual.patch_embed(patches), expected, atol=1e-6, rtol=1e-5)
