"""Sensors, images and text in one sequence."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from framework.model.language_action import LanguageActionModel
from framework.model.media import MEDIA
from framework.scene.batch import MicroBatch
from tests.model.conftest import EVERYTHING, NOTHING, build, make_batch

SOME = ("Which way?", 1, ("ego", "boxes"))


def test_every_parameter_gets_a_gradient() -> None:
    model = build().train()
    batch = make_batch(model, [EVERYTHING, SOME], side="right")
    model.head(model(batch)).logsumexp(-1).sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == []


@pytest.mark.parametrize("side", ["left", "right"])
def test_neighbours_and_padding_change_nothing(model: LanguageActionModel, side: str) -> None:
    samples = [EVERYTHING, NOTHING, SOME]
    with torch.no_grad():
        together = make_batch(model, samples, side)
        hidden = model(together)
        for row, sample in enumerate(samples):
            alone = model(make_batch(model, [sample], side))[0]
            torch.testing.assert_close(hidden[row][together["attention_mask"][row].bool()], alone, atol=2e-5, rtol=1e-4)


def test_positions_choose_rows_of_the_hidden_states(model: LanguageActionModel) -> None:
    batch = make_batch(model, [EVERYTHING, SOME], side="right")
    positions = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    positions[0, 3] = positions[1, 7] = True
    with torch.no_grad():
        torch.testing.assert_close(model(batch, positions), model(batch)[positions])


def test_a_sensor_is_read(model: LanguageActionModel) -> None:
    for name in ("lidar", "radar", "boxes", "ego"):
        batch = make_batch(model, [EVERYTHING])
        with torch.no_grad():
            before = model(batch)[0, -1]
            batch["sensors"][name]["values"][:, 0, 0] += 3.0
            after = model(batch)[0, -1]
        assert not torch.allclose(before, after), name


def test_placeholders_that_do_not_fit_are_named(model: LanguageActionModel) -> None:
    batch = make_batch(model, [EVERYTHING])
    batch["sensors"]["boxes"]["mask"][:, -1] = True
    with pytest.raises(ValueError, match=r"sensor boxes.*4 tokens.*3 of its placeholders"):
        model(batch)


def test_a_sensor_without_encoder_is_named(model: LanguageActionModel) -> None:
    batch = make_batch(model, [EVERYTHING])
    batch["sensors"]["thermal"] = batch["sensors"]["lidar"]
    with pytest.raises(ValueError, match=r"sensor thermal.*model\.encoders\.thermal"):
        model(batch)


def test_on_the_meta_device_nothing_is_allocated() -> None:
    with torch.device("meta"):
        model = build()
    assert model.processor is None
    assert all(p.is_meta for p in model.parameters())


def test_clips_are_placed_as_plain_transformers_places_them(model: LanguageActionModel) -> None:
    """A clip, a still and text; 4.57 and 5 count multimodal positions by different arguments."""
    processor = model.processor
    frames = [Image.new("RGB", (96, 64), (60 * i, 20, 200)) for i in range(4)]
    content = [{"type": "image"}, {"type": "video"}, {"type": "text", "text": "What moves?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    clip = {"total_num_frames": 4, "fps": 2.0, "frames_indices": [0, 1, 2, 3]}
    settings = {"do_sample_frames": False, "video_metadata": [clip]}
    processed = processor(
        text=[prompt], images=[frames[0]], videos=[frames], return_tensors="pt", videos_kwargs=settings
    )
    ids = processed["input_ids"]
    image, video = processor.tokenizer.convert_tokens_to_ids(["<|image_pad|>", "<|video_pad|>"])
    media = {key: processed[key] for key in MEDIA}
    kinds = (ids == image).long() + 2 * (ids == video).long()
    batch = MicroBatch(input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=kinds, **media)
    arguments = {"mm_token_type_ids": kinds} if hasattr(model.backbone.model, "compute_3d_position_ids") else {}
    with torch.no_grad():
        expected = model.backbone(input_ids=ids, attention_mask=torch.ones_like(ids), **media, **arguments).logits
        torch.testing.assert_close(model.head(model(batch)), expected, atol=1e-5, rtol=1e-4)
    assert processed["video_grid_thw"].tolist() == [[2, 4, 6]]


def test_prompts_are_shared_by_an_attention_that_can(model: LanguageActionModel) -> None:
    config = model.backbone.model.language_model.config
    before = config._attn_implementation
    config._attn_implementation = "flash_attention_2"
    try:
        model.enable_shared_prefix()
        assert config._attn_implementation == "sdpa"
    finally:
        config._attn_implementation = before
