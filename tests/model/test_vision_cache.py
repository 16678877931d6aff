"""Frames that were seen before are not encoded again, and answers stay as they are."""

from __future__ import annotations

import pytest
import torch

from framework.model.generate import sample
from framework.model.vision_cache import VisionCache
from tests.model.conftest import build, make_batch


def test_features_are_those_of_the_tower_and_old_frames_are_reused() -> None:
    model = build()
    visual, generator = model.backbone.model.visual, torch.Generator().manual_seed(0)
    width = 3 * 2 * 16 * 16
    frames = [torch.randn(4 * k, width, generator=generator) for k in (1, 2, 1)]
    grids = torch.tensor([[1, 2, 2], [1, 2, 4], [1, 2, 2]])
    clip = torch.cat([frames[0], frames[2]]), torch.tensor([[2, 2, 2]])
    with torch.no_grad():
        expected, moving = visual(torch.cat(frames), grids), visual(*clip)
    cache = VisionCache(visual, 3)

    def equal(ours: object, theirs: object) -> None:
        torch.testing.assert_close(vars(ours), vars(theirs), atol=1e-5, rtol=1e-4)

    with torch.no_grad():
        for counts in ((3, 0), (3, 3)):
            equal(visual(torch.cat(frames), grids), expected)
            assert (cache.encoded, cache.reused) == counts
        equal(visual(*clip), moving)  # a clip's frames are those of images
        assert (cache.encoded, cache.reused) == (3, 5)
        visual(torch.cat([frames[1], frames[1]]), torch.tensor([[1, 4, 2], [1, 2, 4]]))  # another form is another frame
        assert (cache.encoded, cache.reused) == (4, 6)
        visual(frames[2], grids[2:])  # still kept; the first went, which was used longest ago
        assert (cache.encoded, cache.reused) == (4, 7)
    assert visual(frames[0], grids[:1]).pooler_output.requires_grad
    assert cache.encoded == 4


def test_answers_about_an_image_that_was_seen_are_equal() -> None:
    model, other = build(), build()
    cache = VisionCache(other.backbone.model.visual, 8)
    batch = make_batch(model, [("Where to?", 2, ("ego",))])
    for grammar in (None, "start: accel{3}\naccel: <|accel_0|> | <|accel_1|> | <|accel_2|>\n"):
        (ours,), (cached,) = (sample(each, batch, each.processor.tokenizer, [grammar], 8) for each in (model, other))
        assert ours.tokens == cached.tokens
        assert ours.logprobs == pytest.approx(cached.logprobs, abs=1e-5)
    assert cache.encoded == cache.reused == 2
