"""Clips among images: one call of the vision tower, and what plain transformers computes by two."""

from __future__ import annotations

import itertools

import pytest
import torch

from framework.data.render.chat import ChatRenderer
from framework.data.render.collate import collate, collate_packed
from framework.data.render.sample import Sample
from framework.data.render.tasks import Converse
from framework.model.language_action import LanguageActionModel
from framework.model.media import clips_as_images, media_of
from framework.scene.batch import MicroBatch
from framework.scene.dialogue import Dialogue
from tests.dialogues import dialogue, film, picture, scene_of

TALKS = {
    "text": dialogue(("user", "Hi."), ("assistant", "Hello.")),
    "images": dialogue(("user", [picture(1), "and", picture(2, (96, 64))]), ("assistant", "Two.")),
    "clips": dialogue(("user", [film(1), "and", film(2, 2, (96, 64))]), ("assistant", "Two.")),
    "mixed": dialogue(("user", [film(3, 6), picture(3), "?", film(4), picture(4)]), ("assistant", "Many.")),
    "image, clip": dialogue(("user", [picture(5)]), ("assistant", "One."), ("user", [film(5)]), ("assistant", "Two.")),
}


def samples(model: LanguageActionModel, *talks: Dialogue) -> list[Sample]:
    renderer, task = ChatRenderer(model.processor, {}, 1 << 16), Converse()
    scenes = [scene_of(talk) for talk in talks]
    return [Sample(renderer.render(scene, task.conversation(scene, "")), scene, "converse") for scene in scenes]


def batch_of(model: LanguageActionModel, *talks: Dialogue, packed: bool = False) -> MicroBatch:
    special = ChatRenderer(model.processor, {}, 1 << 16).special_ids
    rows = samples(model, *talks)
    return collate_packed([rows[:2], rows[2:]], special) if packed else collate(rows, special)


def calls_of_the_tower(model: LanguageActionModel, batch: MicroBatch) -> int:
    calls = []
    hook = model.backbone.model.visual.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        model(batch)
    hook.remove()
    return len(calls)


@pytest.mark.parametrize("names", itertools.combinations(TALKS, 3), ids=", ".join)
@pytest.mark.fast_cases(3)
def test_the_hidden_states_are_those_of_two_calls(model: LanguageActionModel, names: tuple[str, ...]) -> None:
    batch = batch_of(model, *(TALKS[name] for name in names))
    with torch.no_grad():
        expected = model.run_backbone(
            model.embed(batch), batch["attention_mask"], model.position_ids(batch), media_of(batch), None
        )[0]
        found = model(batch)
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(found[real], expected[real], rtol=1e-4, atol=1e-5)


def test_packed_rows_keep_their_media(model: LanguageActionModel) -> None:
    batch = batch_of(model, *TALKS.values(), packed=True)
    alone = [batch_of(model, talk) for talk in TALKS.values()]
    with torch.no_grad():
        found = model(batch)[batch["segments"] > 0]
        expected = torch.cat([model(each)[0] for each in alone])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TALKS)
def test_the_tower_is_called_once_whatever_a_rank_has(model: LanguageActionModel, name: str) -> None:
    batch = batch_of(model, TALKS[name])
    model.run_unused_encoders = True
    try:
        assert calls_of_the_tower(model, batch) == 1
    finally:
        model.run_unused_encoders = False


def test_a_batch_of_one_kind_stays_as_it_is(model: LanguageActionModel) -> None:
    for name in ("text", "images", "clips"):
        batch = batch_of(model, TALKS[name])
        assert clips_as_images(batch, model.backbone.config) is batch
    mixed = batch_of(model, TALKS["mixed"])
    whole = clips_as_images(mixed, model.backbone.config)
    assert whole["image_grid_thw"].tolist() == [
        mixed["video_grid_thw"][0].tolist(), mixed["image_grid_thw"][0].tolist(),
        mixed["video_grid_thw"][1].tolist(), mixed["image_grid_thw"][1].tolist(),
    ]  # fmt: skip
    assert "pixel_values_videos" in mixed
    assert "pixel_values_videos" not in whole
