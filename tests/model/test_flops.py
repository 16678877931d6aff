"""FLOPs from shapes are those that torch counts while the tiny model trains, sample by sample."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from framework.data.render.chat import ChatRenderer
from framework.data.render.collate import SpecialIds, collate, collate_packed
from framework.data.render.sample import Rendered
from framework.data.render.sample import Sample as RenderedSample
from framework.data.render.sensors import BoxesInput, EgoInput, LidarInput, RadarInput
from framework.data.render.tasks import Answer, Caption, Drive
from framework.model.backbone import RandomBackbone
from framework.model.codecs.waypoints import WaypointCodec
from framework.model.encoders.boxes import BoxEncoder
from framework.model.encoders.ego import EgoEncoder
from framework.model.encoders.lidar import PillarEncoder
from framework.model.encoders.radar import RadarEncoder
from framework.model.flops import PARTS, TrainingFlops, batch_flops, forward_flops
from framework.model.freeze import set_trainable
from framework.model.language_action import LanguageActionModel
from framework.model.lora import LoRA
from framework.objective.supervised import CrossEntropy, next_token_positions
from framework.parallel.recompute import Recompute
from framework.scene.batch import MicroBatch
from framework.scene.types import Scene
from framework.scene.world.generate import generate_scene
from tests.model.presets import preset

Sample = tuple[Rendered, Scene]
LANGUAGE, VISION = "backbone.model.language_model.", "backbone.model.visual."


@pytest.fixture
def model() -> LanguageActionModel:
    """The tiny model with every sensor. Its attention is made of matrix products, which torch counts in both passes."""
    backbone = RandomBackbone(preset("model/backbone/tiny.yaml")["architecture"], attention="eager")
    lidar = functools.partial(PillarEncoder, tokens=4, cells=16)
    encoders: dict[str, Any] = {"lidar": lidar, "radar": functools.partial(RadarEncoder, tokens=2)}
    return LanguageActionModel(backbone, encoders | {"boxes": BoxEncoder, "ego": EgoEncoder})


@pytest.fixture
def samples(model: LanguageActionModel) -> list[Sample]:
    """A drive with pictures and sensors, a clip that is described, questions without pictures."""
    sensors: Any = {"lidar": LidarInput(4), "radar": RadarInput(2), "boxes": BoxesInput(), "ego": EgoInput()}
    sighted = ChatRenderer(model.processor, sensors, max_length=4096)
    blind = ChatRenderer(model.processor, {}, max_length=4096, cameras=())
    scenes = [generate_scene(seed) for seed in range(3)]
    clips = (
        dataclasses.replace(camera, frames=camera.frames * 4, times=np.array([-1.5, -1.0, -0.5, 0.0]))
        for camera in scenes[1].cameras
    )
    scenes[1] = dataclasses.replace(scenes[1], cameras=tuple(clips))
    tasks: list[Any] = [Drive(WaypointCodec()), Caption(), Answer(questions_per_sample=2)]
    readers = [sighted, sighted, blind]
    return [
        (reader.render(scene, task.conversation(scene, "test")), scene)
        for reader, scene, task in zip(readers, scenes, tasks, strict=True)
    ]


def batch_of(model: LanguageActionModel, samples: list[Sample], packed: bool = False) -> MicroBatch:
    ids = model.processor.tokenizer.convert_tokens_to_ids
    special = SpecialIds(ids("<|endoftext|>"), ids("<|image_pad|>"), ids("<|video_pad|>"))
    row = [RenderedSample(rendered, scene, "test") for rendered, scene in samples]
    return collate_packed([row], special) if packed else collate(row, special)


def train(model: LanguageActionModel, batch: MicroBatch) -> FlopCounterMode:
    """Both passes over a batch, counted by torch."""
    with FlopCounterMode(display=False) as counter:
        positions, targets = next_token_positions(batch["labels"])
        CrossEntropy()(model(batch, positions), model.head, targets).total.backward()
    return counter


def counted(model: LanguageActionModel, samples: list[Sample]) -> float:
    """What torch counts over the samples one by one."""
    return float(sum(train(model, batch_of(model, [sample])).get_total_flops() for sample in samples))


def ours(model: LanguageActionModel, batch: MicroBatch, recomputed: dict[str, float] | None = None) -> dict[str, float]:
    return TrainingFlops(model, recomputed).of_step([batch])


def squares(found: dict[str, float]) -> float:
    """All FLOPs as torch counts them, which knows no causal attention: the whole score matrix."""
    return sum(found.values()) + found["attention"]


def test_the_samples_have_pictures_a_clip_and_neither(model: LanguageActionModel, samples: list[Sample]) -> None:
    keys = [batch_of(model, [sample]).keys() for sample in samples]
    assert [("pixel_values" in each, "pixel_values_videos" in each) for each in keys] == [
        (True, False),
        (False, True),
        (False, False),
    ]


@pytest.mark.parametrize("number", range(3))
def test_each_part_of_the_forward_pass(model: LanguageActionModel, samples: list[Sample], number: int) -> None:
    batch = batch_of(model, [samples[number]])
    with FlopCounterMode(display=False) as counter:
        hidden = model(batch, next_token_positions(batch["labels"])[0])
    by_module = {str(name).partition(".")[2]: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    language = sum(by_module.get(f"{LANGUAGE}layers.{i}", 0) for i in range(4))
    vision = sum(by_module.get(VISION + name, 0) for name in ("patch_embed", "blocks.0", "blocks.1", "merger"))
    vision += sum(by_module.get(f"{VISION}deepstack_merger_list.{i}", 0) for i in range(1))
    found = batch_flops(model.backbone.config, batch, model.vocabulary)
    assert found.language + found.language_attention == pytest.approx(language, rel=0.02)
    assert found.vision == pytest.approx(vision, rel=0.02)
    assert (found.vision > 0) is (number < 2)
    with FlopCounterMode(display=False) as counter:
        model.head(hidden)
    assert found.head == pytest.approx(counter.get_total_flops(), rel=1e-6)


@pytest.mark.slow
def test_training_on_pictures_clips_sensors_and_text(model: LanguageActionModel, samples: list[Sample]) -> None:
    found = ours(model, batch_of(model, samples))
    assert set(found) == set(PARTS)
    assert min(found[part] for part in ("dense", "attention", "vision", "encoders")) > 0 == found["recomputed"]
    assert squares(found) == pytest.approx(counted(model, samples), rel=0.02)


def test_encoders_are_counted(model: LanguageActionModel, samples: list[Sample]) -> None:
    batch, total = batch_of(model, samples[:1]), 0
    for name, encoder in model.encoders.items():
        values = batch["sensors"][name]["values"].requires_grad_()  # as if the first layer had one before it
        with FlopCounterMode(display=False) as counter:
            encoder(values, batch["sensors"][name]["mask"])[0].sum().backward()
        total += counter.get_total_flops()
    assert ours(model, batch)["encoders"] == pytest.approx(total, rel=0.02)
    assert ours(model, batch_of(model, samples[2:]))["encoders"] == 0


def test_packed_rows_cost_what_their_samples_do(model: LanguageActionModel, samples: list[Sample]) -> None:
    alone = [ours(model, batch_of(model, [sample])) for sample in samples]
    together = ours(model, batch_of(model, samples, packed=True))
    for part in ("dense", "attention", "vision"):
        assert together[part] == pytest.approx(sum(found[part] for found in alone), rel=1e-9)
    # Encoders really run on the padding between sensors' rows; nothing else of a padded batch counts.
    assert together == pytest.approx(ours(model, batch_of(model, samples)))


FROZEN = {
    "the vision tower": ["*", "!*visual*"],
    "all but the encoders": ["encoders.*"],
    "all but the upper half": ["*language_model.layers.2.*", "*language_model.layers.3.*"],
    "the language model": ["*visual*", "encoders.*"],
}


@pytest.mark.parametrize("patterns", FROZEN.values(), ids=FROZEN)
@pytest.mark.fast_cases(1)
def test_what_is_frozen_has_no_gradient_to_compute(
    model: LanguageActionModel, samples: list[Sample], patterns: list[str]
) -> None:
    whole = sum(ours(model, batch_of(model, samples)).values())
    set_trainable(model, patterns)
    found = ours(model, batch_of(model, samples))
    sighted = samples[:2]  # without the encoders there is nothing to train in the third
    assert sum(found.values()) < 0.95 * whole
    assert squares(ours(model, batch_of(model, sighted))) == pytest.approx(counted(model, sighted), rel=0.02)


@pytest.mark.parametrize("patterns", [[], ["*"]])
@pytest.mark.slow
def test_adapters_are_counted(model: LanguageActionModel, samples: list[Sample], patterns: list[str]) -> None:
    without = squares(ours(model, batch_of(model, samples)))
    LoRA([f"{LANGUAGE}layers.*_proj", f"{VISION}blocks.*.linear_fc?"], rank=16).attach(model)
    set_trainable(model, patterns)
    sighted = samples[:2]  # without the encoders there is nothing to train in the third
    assert squares(ours(model, batch_of(model, sighted))) == pytest.approx(counted(model, sighted), rel=0.02)
    assert squares(ours(model, batch_of(model, samples))) != pytest.approx(without, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recompute", "tolerance"),
    [
        (Recompute(), 0.02),
        (Recompute(every=2), 0.02),
        (Recompute(kept={"linear": 1}), 0.02),
        (Recompute(kept={"linear": 2}), 0.2),  # layers of a block are not of one size
    ],
)
def test_recomputation_is_told_apart(
    model: LanguageActionModel, samples: list[Sample], recompute: Recompute, tolerance: float
) -> None:
    without = counted(model, samples)
    recompute.apply(model.blocks())
    found = ours(model, batch_of(model, samples), recompute.shares())
    plain = ours(model, batch_of(model, samples))
    assert {name: found[name] for name in PARTS if name != "recomputed"} == pytest.approx(
        {name: plain[name] for name in PARTS if name != "recomputed"}
    )
    forward = batch_flops(model.backbone.config, batch_of(model, samples), model.vocabulary)
    again = found["recomputed"] + recompute.shares()["attention"] * forward.language_attention
    assert again == pytest.approx(counted(model, samples) - without, rel=tolerance)


def test_a_sample_is_a_batch_of_one(model: LanguageActionModel, samples: list[Sample]) -> None:
    batch = batch_of(model, samples[2:])
    length, learned = batch["input_ids"].numel(), int(next_token_positions(batch["labels"])[0].sum())
    assert batch_flops(model.backbone.config, batch, model.vocabulary) == forward_flops(
        model.backbone.config, length, 0, learned, model.vocabulary
    )


def test_an_encoder_that_needs_its_values_is_left_out_with_a_warning(
    model: LanguageActionModel, samples: list[Sample], caplog: pytest.LogCaptureFixture
) -> None:
    class Reading(EgoEncoder):
        def forward(self, values: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            assert float(values.sum()) < 1e9
            return super().forward(values, mask)

    all_of_them = ours(model, batch_of(model, samples[:1]))["encoders"]
    model.encoders["ego"] = Reading(128)
    assert ours(model, batch_of(model, samples[:1]))["encoders"] < all_of_them
    assert "encoder ego is not counted" in caplog.text


@pytest.mark.parametrize("name", ["tiny_moe", "tiny_qwen3_5", "tiny_qwen3_5_moe"])
def test_experts_and_recurrent_layers_count_what_a_token_computes(name: str) -> None:
    architecture = preset(f"model/backbone/{name}.yaml")["architecture"]
    model = LanguageActionModel(RandomBackbone(architecture, attention="eager"))
    model.backbone.config.text_config._experts_implementation = "eager"  # of matrix products that torch counts
    ids = torch.arange(5, 45)[None]
    batch = MicroBatch(input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=ids * 0, labels=ids)
    with FlopCounterMode(display=False) as counter:
        model(batch)
    by_module = {str(module).partition(".")[2]: ops for module, ops in counter.get_flop_counts().items()}
    linear = (torch.ops.aten.mm, torch.ops.aten.addmm)
    layers = [by_module[f"{LANGUAGE}layers.{index}"] for index in range(4)]
    products = sum(count for ops in layers for op, count in ops.items() if op in linear)
    text, recurrent = architecture["text"], 0
    if "full_attention_interval" in text:  # three layers of four: a convolution, and three products with each state
        keys = text["linear_num_key_heads"] * text["linear_key_head_dim"]
        values = text["linear_num_value_heads"] * text["linear_value_head_dim"]
        recurrent = 3 * (4 * (2 * keys + values) + 3 * values * text["linear_key_head_dim"])
    found = batch_flops(model.backbone.config, batch, model.vocabulary)
    assert found.language_dense == products + 2 * 40 * recurrent
    scores = 4 * architecture["text"]["num_attention_heads"] * text["head_dim"] * 40**2
    attending = 1 if recurrent else 4
    assert found.language_attention == attending * scores / 2, "the half of causal attention"
