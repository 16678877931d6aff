"""Samples side by side: nothing is learned from padding, and each sensor has the rows of those that carry it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from framework.data.render.collate import SpecialIds, collate, collate_packed
from framework.data.render.sample import Rendered, Sample
from framework.scene.batch import IGNORE_INDEX, MicroBatch
from framework.scene.types import Scene

PAD, IMAGE, VIDEO = SPECIAL = SpecialIds(pad=0, image=7, video=8)
LENGTHS = (5, 9, 3)
SIDES: tuple[Literal["left", "right"], ...] = ("left", "right")


def _sample(length: int, sensors: Sequence[str] = (), images: int = 0, videos: int = 0) -> Rendered:
    """Tokens counted from 100 on, the last two learned, `length` rows of each sensor, its length as all pixels."""
    ids = torch.arange(100, 100 + length)
    labels = torch.cat([torch.full((length - 2,), IGNORE_INDEX), ids[-2:]])
    ids[1 : 1 + images] = IMAGE
    ids[1 + images : 1 + images + videos] = VIDEO
    media: dict[str, Tensor] = {}
    if images:
        media |= {"pixel_values": torch.full((4 * images, 6), float(length)), "image_grid_thw": _grid(images, length)}
    if videos:
        media |= {"pixel_values_videos": torch.full((8, 6), float(length)), "video_grid_thw": _grid(videos, length)}
    rows = {name: np.full((length, 4), float(length), dtype=np.float32) for name in sensors}
    return Rendered(ids, labels, media, rows)


def _grid(count: int, length: int) -> Tensor:
    return torch.tensor([[1, 2, length]] * count)


def _collate(samples: Sequence[Rendered], side: Literal["left", "right"] = "right") -> MicroBatch:
    named = [
        Sample(sample, Scene(id=f"scene-{index}", kind="made"), f"task-{index}") for index, sample in enumerate(samples)
    ]
    return collate(named, SPECIAL, side)


@pytest.mark.parametrize("side", SIDES)
def test_padding_stands_on_its_side_is_masked_and_teaches_nothing(side: Literal["left", "right"]) -> None:
    samples = [_sample(length) for length in LENGTHS]
    batch = _collate(samples, side)
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape == (3, 9)
    for row, sample in enumerate(samples):
        length = len(sample.input_ids)
        real, padding = (
            (slice(9 - length, 9), slice(0, 9 - length)) if side == "left" else (slice(length), slice(length, 9))
        )
        assert torch.equal(batch["input_ids"][row, real], sample.input_ids)
        assert torch.equal(batch["labels"][row, real], sample.labels)
        assert batch["attention_mask"][row, real].eq(1).all()
        assert batch["input_ids"][row, padding].eq(PAD).all()
        assert batch["labels"][row, padding].eq(IGNORE_INDEX).all()
        assert batch["attention_mask"][row, padding].eq(0).all()
    assert int((batch["labels"] != IGNORE_INDEX).sum()) == 2 * len(samples)


@pytest.mark.parametrize("having", [c for n in range(4) for c in itertools.combinations(range(3), n)])
def test_any_of_the_samples_may_have_a_sensor(having: tuple[int, ...]) -> None:
    samples = [_sample(n, ["ego", *(["lidar"] if i in having else [])]) for i, n in enumerate(LENGTHS)]
    sensors = _collate(samples)["sensors"]
    assert set(sensors) == ({"ego", "lidar"} if having else {"ego"})
    for name, indices in (("ego", (0, 1, 2)), ("lidar", having)):
        if not indices:
            continue
        values, mask = sensors[name]["values"], sensors[name]["mask"]
        longest = max(LENGTHS[i] for i in indices)
        assert values.shape == (len(indices), longest, 4)
        assert mask.shape == (len(indices), longest)
        assert (values.dtype, mask.dtype) == (torch.float32, torch.bool)
        for row, index in enumerate(indices):
            assert mask[row].tolist() == [n < LENGTHS[index] for n in range(longest)]
            assert values[row, : LENGTHS[index]].eq(LENGTHS[index]).all()
            assert values[row, LENGTHS[index] :].eq(0).all()


@pytest.mark.parametrize("side", SIDES)
def test_token_types_tell_images_from_clips_from_text(side: Literal["left", "right"]) -> None:
    batch = _collate([_sample(9, images=2, videos=1), _sample(5), _sample(6, videos=2)], side)
    types, ids = batch["mm_token_type_ids"], batch["input_ids"]
    assert [types[row].bincount(minlength=3)[1:].tolist() for row in range(3)] == [[2, 1], [0, 0], [0, 2]]
    assert torch.equal(types == 1, ids == IMAGE)
    assert torch.equal(types == 2, ids == VIDEO)


def test_media_follow_in_the_samples_order_and_are_absent_where_there_are_none() -> None:
    batch = _collate([_sample(9, images=2), _sample(5), _sample(6, images=1, videos=1), _sample(8, videos=1)])
    assert batch["image_grid_thw"][:, 2].tolist() == [9, 9, 6]
    assert batch["pixel_values"][:, 0].tolist() == [9.0] * 8 + [6.0] * 4
    assert batch["video_grid_thw"][:, 2].tolist() == [6, 8]
    assert batch["pixel_values_videos"][:, 0].tolist() == [6.0] * 8 + [8.0] * 8
    bare = _collate([_sample(5)])
    assert not {"pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw"} & set(bare)


def test_scenes_and_tasks_keep_the_samples_order() -> None:
    batch = _collate([_sample(length) for length in LENGTHS])
    assert batch["sample_ids"] == [scene.id for scene in batch["scenes"]] == ["scene-0", "scene-1", "scene-2"]
    assert batch["tasks"] == ["task-0", "task-1", "task-2"]


def test_a_packed_row_holds_its_samples_apart_and_learns_what_padded_ones_do() -> None:
    samples = [_sample(n, ["lidar"] if n != 9 else [], images=1) for n in (5, 9, 3, 6)]
    samples[1].labels[0] = 100  # what begins a sample follows another's end: it is never learned
    named = [Sample(sample, Scene(id=str(index), kind="made"), "drive") for index, sample in enumerate(samples)]
    packed = collate_packed([named[:2], named[2:]], SPECIAL)
    assert packed["segments"].tolist() == [[1] * 5 + [2] * 9, [1] * 3 + [2] * 6 + [0] * 5]
    assert torch.equal(packed["attention_mask"], packed["segments"].gt(0).long())
    padded = collate(named, SPECIAL)
    for name in ("input_ids", "labels", "mm_token_type_ids"):
        flat, apart = packed[name], padded[name]
        assert torch.equal(flat[packed["segments"] > 0], apart[padded["attention_mask"] > 0]), name
    assert torch.equal(packed["pixel_values"], padded["pixel_values"])
    assert torch.equal(packed["sensors"]["lidar"]["values"], padded["sensors"]["lidar"]["values"])
    assert packed["labels"][0, 5] == IGNORE_INDEX
    assert packed["sample_ids"] == ["0", "1", "2", "3"]
