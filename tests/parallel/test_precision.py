"""Formats of weights and arithmetic other than float32."""

from __future__ import annotations

import pytest
import torch

from framework.parallel.precision import Precision
from tests.parallel.tiny import Passes, build, passes

MIXED, PURE = Precision("float32", "bfloat16"), Precision("bfloat16", "bfloat16")


@pytest.fixture(scope="module")
def plain() -> Passes:
    return passes(lambda model: Precision().cast(model))


def _angle(found: Passes, plain: Passes) -> float:
    """Cosine between the two gradients, all parameters together."""
    ours, theirs = (
        torch.cat([p.gradients[name].double().flatten() for name in plain.gradients]) for p in (found, plain)
    )
    return float(torch.nn.functional.cosine_similarity(ours, theirs, dim=0))


def test_mixed_precision_computes_in_bfloat16_and_keeps_float32_weights_and_gradients(plain: Passes) -> None:
    found = passes(lambda model: MIXED.cast(model), around=torch.autocast("cpu", torch.bfloat16))
    assert found.loss != plain.loss
    assert found.loss == pytest.approx(plain.loss, rel=1e-3)
    assert {gradient.dtype for gradient in found.gradients.values()} == {torch.float32}
    assert _angle(found, plain) > 0.999


def test_pure_bfloat16_halves_weights_gradients_and_most_activations(plain: Passes) -> None:
    found = passes(lambda model: PURE.cast(model))
    assert found.loss == pytest.approx(plain.loss, rel=1e-3)
    assert {gradient.dtype for gradient in found.gradients.values()} == {torch.bfloat16}
    assert _angle(found, plain) > 0.999
    assert found.kept < 0.75 * plain.kept


def test_rotary_frequencies_stay_exact() -> None:
    model = build()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    PURE.cast(model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert any("inv_freq" in name for name in before)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_tied_weights_stay_tied() -> None:
    model = build()
    PURE.cast(model)
    assert model.backbone.get_input_embeddings().weight is model.backbone.get_output_embeddings().weight


def test_over_a_mesh_gradients_are_reduced_in_float32_and_inputs_left_alone() -> None:
    for precision in (MIXED, PURE):
        policy = precision.on_mesh()
        assert (policy.param_dtype, policy.reduce_dtype) == (torch.bfloat16, torch.float32)
        assert not policy.cast_forward_inputs
    assert Precision().on_mesh().param_dtype is None


def test_names_are_lightnings() -> None:
    assert [precision.name for precision in (Precision(), MIXED, PURE)] == ["32-true", "bf16-mixed", "bf16-true"]


def test_bfloat16_weights_with_float32_arithmetic_are_refused() -> None:
    with pytest.raises(ValueError, match=r"parallel.precision: bfloat16 weights gain nothing"):
        Precision("bfloat16", "float32")
