"""A tiny model with every sensor, and batches made by its own processor."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from framework.model.backbone import RandomBackbone
from framework.model.encoders.boxes import BoxEncoder
from framework.model.encoders.ego import EgoEncoder
from framework.model.encoders.lidar import PillarEncoder
from framework.model.encoders.radar import RadarEncoder
from framework.model.language_action import LanguageActionModel
from framework.scene.batch import MicroBatch

PRESET = Path(__file__).resolve().parents[2] / "conf" / "model" / "backbone" / "tiny.yaml"
SENSORS = {
    "lidar": ("<|lidar|>", 4, 4),
    "radar": ("<|radar|>", 2, 5),
    "boxes": ("<|box|>", 3, 11),
    "ego": ("<|ego|>", 5, 4),
}
"""Placeholder, tokens and channels of each sensor."""


def build(seed: int = 0, preset: str = "tiny") -> LanguageActionModel:
    """A tiny model of the recipes, with small encoders and a few control tokens."""
    torch.manual_seed(seed)
    encoders: dict[str, Callable[..., torch.nn.Module]] = {
        "lidar": functools.partial(PillarEncoder, tokens=4, cells=16),
        "radar": functools.partial(RadarEncoder, tokens=2),
        "boxes": BoxEncoder,
        "ego": EgoEncoder,
    }
    backbone = RandomBackbone(yaml.safe_load(PRESET.with_stem(preset).read_text())["architecture"])
    return LanguageActionModel(backbone, encoders, [f"<|accel_{i}|>" for i in range(3)]).eval()


@pytest.fixture(scope="session")
def model() -> LanguageActionModel:
    return build()


Sample = tuple[str, int, tuple[str, ...]]
"""Text, number of images, sensors."""
EVERYTHING: Sample = ("What is ahead?", 2, tuple(SENSORS))
NOTHING: Sample = ("Hello", 0, ())


def make_batch(model: LanguageActionModel, samples: list[Sample], side: str = "left") -> MicroBatch:
    """Prompts with images and sensors, drawn from a generator of their own."""
    rows = [_render(model, *sample) for sample in samples]
    pad = functools.partial(torch.nn.utils.rnn.pad_sequence, batch_first=True, padding_side=side)
    ids = pad([row["input_ids"] for row in rows], padding_value=model.processor.tokenizer.pad_token_id)
    image = model.processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    batch = MicroBatch(
        input_ids=ids,
        attention_mask=pad([torch.ones_like(row["input_ids"]) for row in rows]),
        mm_token_type_ids=(ids == image).long(),
        sensors={},
    )
    for key in ("pixel_values", "image_grid_thw"):
        parts = [row[key] for row in rows if key in row]
        if parts:
            batch[key] = torch.cat(parts)  # type: ignore[literal-required]
    for name, (_, count, channels) in SENSORS.items():
        has = [index for index, (_, _, sensors) in enumerate(samples) if name in sensors]
        if has:
            drawn = [
                torch.randn(count + 2, channels, generator=torch.Generator().manual_seed(len(samples[i][0])))
                for i in has
            ]
            values = torch.stack(drawn)
            if name == "boxes":
                values[..., 9] = 1.0
            mask = torch.ones(len(has), count + 2, dtype=torch.bool)
            mask[:, count:] = False
            batch["sensors"][name] = {"values": values * mask[..., None], "mask": mask}
    return batch


def _render(model: LanguageActionModel, text: str, images: int, sensors: tuple[str, ...]) -> dict[str, Any]:
    placeholders = "".join(SENSORS[name][0] * SENSORS[name][1] for name in sensors)
    content: list[dict[str, str]] = [{"type": "image"}] * images + [{"type": "text", "text": placeholders + text}]
    prompt = model.processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    generator = torch.Generator().manual_seed(len(text))
    pictures = [_picture(generator) for _ in range(images)]
    processed = model.processor(text=[prompt], images=pictures or None, return_tensors="pt")
    return {key: value[0] if key == "input_ids" else value for key, value in processed.items()}


def _picture(generator: torch.Generator) -> Image.Image:
    pixels = torch.randint(0, 256, (64, 96, 3), dtype=torch.uint8, generator=generator)
    buffer = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(buffer, format="PNG")
    return Image.open(buffer).convert("RGB")
