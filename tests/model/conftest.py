"""A tiny model of every sensor and batches for it, from the presets."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from framework.model.action_codec import ControlTokenCodec
from framework.model.assembly import LanguageActionModel
from framework.model.backbone import Qwen3VLBackbone
from framework.model.boxes import BoxEncoder
from framework.model.ego import EgoEncoder
from framework.model.lidar import PillarEncoder
from framework.model.radar import RadarEncoder

PRESETS = Path(__file__).parents[2] / "conf" / "model"
TOKENS = {"lidar": "<|lidar|>" * 16, "radar": "<|radar|>" * 8, "boxes": "<|box|>", "ego": "<|ego|>"}


def preset(name: str) -> dict[str, Any]:
    """A preset's arguments, without the target."""
    values = yaml.safe_load((PRESETS / name).read_text(encoding="utf-8"))
    values.pop("_target_")
    return values


@pytest.fixture(scope="session")
def build() -> Callable[..., LanguageActionModel]:
    def make(seed: int = 0, **arguments: Any) -> LanguageActionModel:
        torch.manual_seed(seed)
        encoders = {
            "lidar": partial(PillarEncoder, tokens=16, channels=16),
            "radar": partial(RadarEncoder, tokens=8, channels=32),
            "boxes": partial(BoxEncoder),
            "ego": partial(EgoEncoder),
        }
        chosen = {"encoders": encoders, "tokens": ControlTokenCodec().tokens} | arguments
        return LanguageActionModel(Qwen3VLBackbone(**preset("backbone/tiny.yaml")), **chosen).eval()

    return make


@pytest.fixture(scope="session")
def tiny(build: Callable[..., LanguageActionModel]) -> LanguageActionModel:
    """Shared, so tests must leave it as it is."""
    return build()


def rows(sensor: str, count: int, seed: int) -> np.ndarray:
    """Plausible rows `(count, channels)` of a sensor."""
    random = np.random.default_rng(seed)
    places = random.uniform((-20, -20, -1), (40, 20, 2), (count, 3))
    if sensor == "lidar":
        return np.concatenate([places, random.random((count, 1))], axis=1)
    if sensor == "radar":
        return np.concatenate([places, random.normal(0, 5, (count, 2))], axis=1)
    if sensor == "boxes":
        sizes, rest = random.uniform(0.5, 5, (count, 3)), random.normal(0, 1, (count, 3))
        return np.concatenate([places, sizes, rest, random.integers(0, 13, (count, 1)), random.random((count, 1))], axis=1)
    return np.stack([-np.arange(count)[::-1] * 2.0, np.zeros(count), np.zeros(count), np.full(count, 8.0)], axis=1)


@pytest.fixture(scope="session")
def make_batch(tiny: LanguageActionModel) -> Callable[..., dict[str, Any]]:
    """Batches from descriptions: each sample is a text, a number of images and the sensors' row counts."""

    def make(samples: list[dict[str, Any]], side: str = "left", answers: list[str] | None = None) -> dict[str, Any]:
        texts, images = [], []
        sensors: dict[str, list[np.ndarray]] = {}
        for number, sample in enumerate(samples):
            text = ""
            for k in range(sample.get("images", 0)):
                pixels = np.random.default_rng(sample.get("seed", number) + k).integers(0, 255, (64, 96, 3), dtype=np.uint8)
                images.append(Image.fromarray(pixels))
                text += "<|vision_start|><|image_pad|><|vision_end|>"
            for name in ("lidar", "radar", "boxes", "ego"):
                if count := sample.get(name, 0):
                    sensors.setdefault(name, []).append(rows(name, count, sample.get("seed", number)))
                    text += TOKENS[name] * (count if name in ("boxes", "ego") else 1)
            texts.append(f"<|im_start|>user\n{text}{sample['text']}<|im_end|>\n<|im_start|>assistant\n")
        if answers is not None:
            texts = [text + answer for text, answer in zip(texts, answers, strict=True)]
        tiny.processor.tokenizer.padding_side = side
        batch = dict(tiny.processor(text=texts, images=images or None, padding=True, return_tensors="pt"))
        batch.pop("mm_token_type_ids", None)
        if sensors:
            batch["sensors"] = {name: _pad(values) for name, values in sensors.items()}
        return batch

    return make


def _pad(values: list[np.ndarray]) -> dict[str, torch.Tensor]:
    most = max(len(value) for value in values)
    padded = torch.zeros(len(values), most, values[0].shape[1])
    mask = torch.zeros(len(values), most, dtype=torch.bool)
    for number, value in enumerate(values):
        padded[number, : len(value)] = torch.from_numpy(value).float()
        mask[number, : len(value)] = True
    return {"values": padded, "mask": mask}
