"""Products in float8: close to bfloat16 within stated bounds, and refused where the device has none."""

from __future__ import annotations

import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from framework.parallel.float8 import Float8
from framework.parallel.parallelism import Parallelism
from framework.parallel.precision import Precision
from framework.recipe.check import check
from tests.parallel.tiny import Passes, build, passes

LAYERS = ("backbone.model.language_model.layers.*_proj",)
Scaling = Literal["tensorwise", "rowwise"]
needs_torchao = pytest.mark.skipif(not find_spec("torchao"), reason="torchao is not installed (extra float8)")


def precision(scaling: Scaling = "tensorwise", **changes: Any) -> Precision:
    """float8 in all layers of the tiny model's language model, emulated."""
    return Precision("float32", "bfloat16", Float8(LAYERS, scaling, **{"small": True, "emulate": True, **changes}))


@pytest.fixture(scope="module")
def plain() -> Passes:
    return passes(lambda model: Precision().cast(model))


@needs_torchao
@pytest.mark.parametrize("scaling", ["tensorwise", "rowwise"])
def test_float8_is_close_to_float32(scaling: Scaling, plain: Passes) -> None:
    chosen = precision(scaling)
    found = passes(lambda model: chosen.convert(model), around=torch.autocast("cpu", torch.bfloat16))
    assert found.loss != plain.loss
    assert found.loss == pytest.approx(plain.loss, rel=2e-3)
    assert found.gradients.keys() == plain.gradients.keys()  # checkpoints and exports stay as they are
    assert {gradient.dtype for gradient in found.gradients.values()} == {torch.float32}
    ours, theirs = (torch.cat([p.gradients[name].flatten() for name in plain.gradients]) for p in (found, plain))
    assert float(torch.nn.functional.cosine_similarity(ours, theirs, dim=0)) > 0.98


@needs_torchao
def test_only_the_named_layers_are_converted_and_none_with_an_adapter() -> None:
    from framework.model.lora import LoRA, adapted_layers

    model = build()
    LoRA(["backbone.model.language_model.layers.0.*_proj"]).attach(model)
    names = Float8(LAYERS, small=True, emulate=True).convert(model)
    assert len(adapted_layers(model)) == 7
    assert len(names) == 7 * (len(model.backbone.model.language_model.layers) - 1)
    assert all(".layers.0." not in name and "language_model" in name for name in names)


@needs_torchao
def test_small_layers_stay_unless_asked_for() -> None:
    with pytest.raises(ValueError, match=r"float8\.layers: .* match no linear layer that gains"):
        Float8(LAYERS, emulate=True).convert(build())


@needs_torchao
@pytest.mark.parametrize(("capability", "wrong"), [(None, "a CPU has no products"), ((8, 0), "A100 has no products")])
def test_a_device_without_float8_is_refused(
    capability: tuple[int, int] | None, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A100")
    with pytest.raises(ValueError, match=wrong):
        Float8(LAYERS, small=True).convert(build())


def test_without_torchao_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(ValueError, match=r"pip install '\.\[float8\]'"):
        Float8(LAYERS, small=True, emulate=True).convert(build())


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (partial(Precision, "float32", "float32", Float8(LAYERS)), "set arithmetic to bfloat16"),
        (partial(Parallelism, "cpu", precision=Precision("float32", "bfloat16", Float8(LAYERS))), "emulate=true"),
    ],
)
def test_what_does_not_go_together_is_refused(make: Any, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        make()


@pytest.mark.slow
def test_check_refuses_float8_on_a_cpu_and_under_tensor_parallelism() -> None:
    words = ["recipe=supervised", "parallel/precision=fp8_rowwise"]
    for more, wrong in (
        (["scale=tiny"], "a CPU has no products of float8"),
        (["parallel.mesh.tensor=2"], "are not cut"),
    ):
        problems = [problem.message for problem in check([*words, *more])[1] if not problem.warning]
        assert len(problems) == 1
        assert wrong in problems[0]
    assert not [problem for problem in check(words)[1] if not problem.warning]


def test_presets_name_the_language_model_alone() -> None:
    presets = sorted(Path("conf/parallel/precision").glob("fp8_*.yaml"))
    assert [preset.stem for preset in presets] == ["fp8_rowwise", "fp8_tensorwise"]
    for preset in presets:
        assert "language_model" in preset.read_text()
