"""The choice of attention: by lengths, or kernels of packages, which are pretended to be there."""

from __future__ import annotations

import pytest
import torch
import transformers

from framework.model.attention import attention_kernels
from framework.model.backbone import RandomBackbone
from framework.model.segments import LANGUAGE, TOWER
from tests.model.presets import preset


def _there(monkeypatch: pytest.MonkeyPatch, capability: int | None, packages: set[int]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (capability, 0))
    for release in (2, 3):
        name = f"is_flash_attn_{release}_available"
        monkeypatch.setattr(transformers.utils, name, lambda release=release: release in packages)


@pytest.mark.parametrize(
    ("capability", "packages", "expected"),
    [(8, {2, 3}, "flash_attention_2"), (9, {2, 3}, "flash_attention_3"), (9, {2}, "flash_attention_2")],
)
def test_flash_takes_the_best_kernels_that_can_run(
    monkeypatch: pytest.MonkeyPatch, capability: int | None, packages: set[int], expected: str
) -> None:
    _there(monkeypatch, capability, packages)
    assert attention_kernels("flash") == expected


def test_auto_attends_by_lengths_in_language_model_and_vision_tower() -> None:
    network = RandomBackbone(preset("model/backbone/tiny.yaml")["architecture"]).skeleton(None)
    assert network.model.language_model.config._attn_implementation == attention_kernels("auto") == LANGUAGE
    assert network.model.visual.config._attn_implementation == TOWER
    masked = RandomBackbone(preset("model/backbone/tiny.yaml")["architecture"], attention="sdpa").skeleton(None)
    assert masked.model.visual.config._attn_implementation == "sdpa"


def test_what_is_insisted_on_and_cannot_run_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    _there(monkeypatch, None, set())
    with pytest.raises(ValueError, match=r"model.backbone.attention: flash needs .*; .*install one, or give auto"):
        attention_kernels("flash")
    with torch.device("meta"):  # a plan is made where the run is not
        assert attention_kernels("flash") == "sdpa"


@pytest.mark.parametrize(("name", "expected"), [("sdpa", "sdpa"), ("eager", "eager"), ("flex", "flex_attention")])
def test_other_names_are_transformers_own(name: str, expected: str) -> None:
    config = RandomBackbone(preset("model/backbone/tiny.yaml")["architecture"], attention=name).config()
    assert config._attn_implementation == expected


def test_dropout_that_attention_by_lengths_would_ignore_is_refused() -> None:
    architecture = preset("model/backbone/tiny.yaml")["architecture"]
    dropping = {**architecture, "text": {**architecture["text"], "attention_dropout": 0.1}}
    with pytest.raises(ValueError, match=r"attention_dropout is 0.1.*attention=sdpa"):
        RandomBackbone(dropping).skeleton(None)
    assert RandomBackbone(dropping, attention="sdpa").skeleton(None) is not None
