"""Packed rows compute what padded rows compute, and their samples never meet."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from framework.data.render.chat import ChatRenderer
from framework.data.render.collate import SpecialIds, collate, collate_packed
from framework.data.render.packing import pack
from framework.data.render.sample import Rendered, Sample
from framework.data.render.sensors import BoxesInput, EgoInput, LidarInput, RadarInput
from framework.data.render.tasks import Answer, Caption, Detect, Drive
from framework.model.codecs.boxes import BoxTextCodec
from framework.model.codecs.waypoints import WaypointCodec
from framework.model.language_action import LanguageActionModel
from framework.model.media import MEDIA
from framework.objective.supervised import CrossEntropy, next_token_positions
from framework.parallel.recompute import Recompute
from framework.scene.batch import MicroBatch
from framework.scene.types import Camera, Scene
from framework.scene.world.generate import generate_scene
from tests.model.conftest import build

TASKS: dict[str, Any] = {
    "drive": Drive(WaypointCodec()),
    "detect": Detect(BoxTextCodec(max_boxes=4)),
    "answer": Answer(questions_per_sample=2),
    "caption": Caption(),
}
Samples = tuple[list[Rendered], list[Scene], list[str]]


@pytest.fixture(scope="module")
def samples(model: LanguageActionModel) -> Samples:
    """Uneven samples: every task, all sensors or none but the ego's history, pictures, clips or neither."""
    sensors: Any = {"lidar": LidarInput(4), "radar": RadarInput(2), "boxes": BoxesInput(), "ego": EgoInput()}
    sighted = ChatRenderer(model.processor, sensors, max_length=4096)
    blind = ChatRenderer(model.processor, {}, max_length=4096, cameras=())
    scenes = [generate_scene(seed) for seed in range(4)]
    scenes[2] = dataclasses.replace(scenes[2], cameras=tuple(_clip(camera) for camera in scenes[2].cameras))
    scenes += [generate_scene(seed, rig=None) for seed in (4, 5)]
    names = ["drive", "caption", "detect", "answer", "caption", "drive"]
    readers = [sighted, sighted, sighted, sighted, blind, sighted]
    rendered = [
        reader.render(scene, TASKS[name].conversation(scene, "test"))
        for reader, scene, name in zip(readers, scenes, names, strict=True)
    ]
    return rendered, scenes, names


def _clip(camera: Camera) -> Camera:
    return dataclasses.replace(camera, frames=camera.frames * 2, times=np.array([-0.5, 0.0]))


def _special(model: LanguageActionModel) -> SpecialIds:
    tokens = model.processor.tokenizer
    ids = tokens.convert_tokens_to_ids
    return SpecialIds(tokens.pad_token_id, ids("<|image_pad|>"), ids("<|video_pad|>"))


def _padded(model: LanguageActionModel, samples: Samples, order: list[int]) -> MicroBatch:
    rendered, scenes, names = samples
    return collate([Sample(rendered[i], scenes[i], names[i]) for i in order], _special(model))


def _packed(model: LanguageActionModel, samples: Samples, rows: list[list[int]]) -> MicroBatch:
    rendered, scenes, names = samples
    return collate_packed([[Sample(rendered[i], scenes[i], names[i]) for i in row] for row in rows], _special(model))


@pytest.fixture(scope="module")
def rows(samples: Samples) -> list[list[int]]:
    """Two rows or more, of several samples, padded."""
    lengths = [len(sample.input_ids) for sample in samples[0]]
    rows = pack(lengths, max(lengths) + sorted(lengths)[1])
    assert 1 < len(rows) < len(lengths)
    assert len({sum(lengths[i] for i in row) for row in rows}) > 1
    return rows


@pytest.fixture(params=["varlen", "sdpa", "eager", "flash_reference"])
def attention(request: pytest.FixtureRequest, model: LanguageActionModel) -> Iterator[str]:
    """The model's attention, and back; the last stands for the flash kernels, which need a GPU."""
    AttentionInterface.register("flash_reference", _flash_reference)
    config = model.backbone.model.language_model.config
    before = config._attn_implementation
    config._attn_implementation = request.param
    yield request.param
    config._attn_implementation = before


def _flash_reference(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **rest: Any
) -> tuple[Tensor, None]:
    """What transformers' flash attention does with a single row and no mask: sequences begin at position 0."""
    places = rest["position_ids"]
    assert mask is None
    assert len(query) == len(places) == 1
    ends = [*places[0].eq(0).nonzero()[1:, 0].tolist(), places.shape[1]]
    sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    seen = [
        F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
        for q, k, v in zip(*(part.split(sizes, dim=2) for part in (query, key, value)), strict=True)
    ]
    return torch.cat(seen, dim=2).transpose(1, 2), None


def _hidden_by_sample(model: LanguageActionModel, batch: MicroBatch) -> list[Tensor]:
    """Hidden states `(t, d)` of each sample."""
    numbers = batch.get("segments", batch["attention_mask"])
    with torch.no_grad():
        hidden = model(batch)
    return [hidden[r][numbers[r] == n] for r in range(len(hidden)) for n in range(1, int(numbers[r].max()) + 1)]


def _relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def test_positions_restart_as_transformers_counts_them(
    model: LanguageActionModel, samples: Samples, rows: list[list[int]]
) -> None:
    packed = _packed(model, samples, rows)
    padded = _padded(model, samples, [i for row in rows for i in row])
    expected = model.position_ids(padded)[:, padded["attention_mask"].bool()]
    assert torch.equal(model.position_ids(packed)[:, packed["segments"] > 0], expected)
    assert not model.position_ids(packed)[:, packed["segments"] == 0].any()
    assert {"image_grid_thw", "video_grid_thw"} <= packed.keys()


def test_places_of_text_alone(model: LanguageActionModel, samples: Samples) -> None:
    packed = _packed(model, samples, [[4, 5], [4]])
    assert "pixel_values" not in packed
    first, second = (len(samples[0][i].input_ids) for i in (4, 5))
    expected = torch.stack([torch.cat([torch.arange(first), torch.arange(n)]) for n in (second, second)])
    expected[1, first:] = 0
    assert torch.equal(model.position_ids(packed), expected.expand(4, -1, -1))


def test_packed_hidden_states_are_the_padded_ones(
    model: LanguageActionModel, samples: Samples, rows: list[list[int]], attention: str
) -> None:
    packed = _hidden_by_sample(model, _packed(model, samples, rows))
    model.backbone.model.language_model.config._attn_implementation = "sdpa"
    padded = _hidden_by_sample(model, _padded(model, samples, [i for row in rows for i in row]))
    assert len(packed) == len(padded) == len(samples[0])
    for one, other in zip(packed, padded, strict=True):
        assert _relative(one, other) < 1e-5


def _train(batch: MicroBatch, make: Callable[[], LanguageActionModel]) -> tuple[float, dict[str, Tensor]]:
    """The summed loss of a micro-batch and its gradients, as the trainer computes them."""
    model = make().train()
    positions, targets = next_token_positions(batch["labels"])
    loss = CrossEntropy()(model(batch, positions), model.head, targets)
    loss.total.backward()
    return loss.total.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.fast_cases(1)
def test_packed_loss_and_gradients_are_the_padded_ones(
    model: LanguageActionModel, samples: Samples, rows: list[list[int]], recompute: bool
) -> None:
    def prepared() -> LanguageActionModel:
        fresh = build()
        Recompute(every=1 if recompute else None).apply(fresh.blocks())
        return fresh

    packed, gradients = _train(_packed(model, samples, rows), prepared)
    padded, expected = _train(_padded(model, samples, list(range(len(samples[0])))), build)
    assert packed == pytest.approx(padded, rel=1e-5)
    assert gradients.keys() == expected.keys()
    whole = torch.stack([g.norm() for g in expected.values()]).norm()
    for name, gradient in expected.items():
        # Some are zero but for rounding: the keys' bias shifts every score alike.
        assert (gradients[name] - gradient).norm() < 1e-5 * gradient.norm() + 1e-8 * whole, name


def _change_token(model: LanguageActionModel, batch: MicroBatch) -> None:
    batch["input_ids"][0, 1] = model.processor.tokenizer.convert_tokens_to_ids("a")


def _change_image(model: LanguageActionModel, batch: MicroBatch) -> None:
    batch["pixel_values"][0] += 1.0


def _change_lidar(model: LanguageActionModel, batch: MicroBatch) -> None:
    batch["sensors"]["lidar"]["values"][0, :, 3] += 1.0


@pytest.mark.parametrize("change", [_change_token, _change_image, _change_lidar])
@pytest.mark.fast_cases(3)
def test_a_change_in_one_sample_changes_no_bit_of_the_others(
    model: LanguageActionModel,
    samples: Samples,
    attention: str,
    change: Callable[[LanguageActionModel, MicroBatch], None],
) -> None:
    batch = _packed(model, samples, [[0, 1, 4], [2, 3, 5]])
    before = _hidden_by_sample(model, batch)
    change(model, batch)
    after = _hidden_by_sample(model, batch)
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [False] + [True] * 5


def test_gradients_of_one_sample_s_loss_reach_that_sample_alone(model: LanguageActionModel, samples: Samples) -> None:
    batch = _packed(model, samples, [[0, 1, 4], [2, 3, 5]])
    embeddings = model.embed(batch).detach().requires_grad_()
    words = MicroBatch(**{key: value for key, value in batch.items() if key not in MEDIA})  # type: ignore[typeddict-item]
    hidden = model._run_packed(embeddings, model.position_ids(batch), words, None)
    hidden[0][batch["segments"][0] == 2].sum().backward()
    assert embeddings.grad is not None
    reached = embeddings.grad.abs().sum(-1) > 0
    assert torch.equal(reached[0], batch["segments"][0] == 2)
    assert not reached[1].any()
