"""What the backward pass computes again changes no number, and is not kept."""

from __future__ import annotations

import pytest
import torch

from framework.parallel.recompute import Recompute, _kind
from tests.parallel.tiny import Passes, passes

MODES = {
    "full": Recompute(),
    "every second block": Recompute(every=2),
    "attention kept": Recompute(kept={"attention": 1}),
    "attention and half of the linear layers kept": Recompute(kept={"attention": 1, "linear": 2}),
    "both, every third block": Recompute(every=3, kept={"attention": 1, "linear": 2}),
}


def _passes(recompute: Recompute) -> Passes:
    return passes(lambda model: recompute.apply(model.blocks()))


@pytest.fixture(scope="module")
def plain() -> Passes:
    return _passes(Recompute(every=None))


@pytest.mark.guarantee("Recomputation gives bit-identical results and keeps less memory")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.fast_cases(2)
def test_loss_and_gradients_are_the_same_bit_for_bit_under_the_same_names(plain: Passes, mode: str) -> None:
    found = _passes(MODES[mode])
    assert found.loss == plain.loss
    assert found.gradients.keys() == plain.gradients.keys()
    for name, gradient in plain.gradients.items():
        assert torch.equal(found.gradients[name], gradient), name
    assert found.kept < plain.kept


@pytest.mark.guarantee("Recomputation gives bit-identical results and keeps less memory")
@pytest.mark.slow
def test_the_more_is_computed_again_the_less_is_kept(plain: Passes) -> None:
    names = ("full", "attention kept", "attention and half of the linear layers kept", "every second block")
    full, attention, selective, every_second = (_passes(MODES[name]).kept for name in names)
    assert full < attention < selective < plain.kept
    assert full < every_second < plain.kept


class _Counting(torch.nn.Linear):
    calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return torch.tanh(super().forward(x))


@pytest.mark.parametrize(("every", "calls"), [(None, [1, 1, 1, 1]), (1, [2, 2, 2, 2]), (3, [2, 1, 1, 2])])
def test_every_nth_block_runs_twice(every: int | None, calls: list[int]) -> None:
    blocks = torch.nn.Sequential(*(_Counting(4, 4) for _ in range(4)))
    Recompute(every).apply(list(blocks))
    blocks(torch.randn(3, 4, requires_grad=True)).sum().backward()
    assert [block.calls for block in blocks if isinstance(block, _Counting)] == calls


def test_shares_are_of_blocks_and_of_operators_within() -> None:
    assert Recompute(every=None).shares() == {"attention": 0.0, "linear": 0.0}
    assert Recompute(every=4).shares() == {"attention": 0.25, "linear": 0.25}
    assert Recompute(every=2, kept={"attention": 1, "linear": 2}).shares() == {"attention": 0.0, "linear": 0.25}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"every": 0}, "recompute.every: 0"),
        ({"kept": {"norm": 1}}, "kept.norm: no such operators; give attention or linear"),
        ({"kept": {"linear": 0}}, "kept.linear: 0"),
    ],
)
def test_what_cannot_be_is_refused_by_name(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Recompute(**arguments)  # type: ignore[arg-type]


def test_attention_by_lengths_counts_as_attention_on_every_device() -> None:
    from torch.nn.attention import varlen

    import framework.model.segment_operator  # noqa: F401  # registers the operator

    assert varlen is not None  # registers the other
    of_gpu, of_cpu = torch.ops.torch_attn._varlen_attn.default, torch.ops.language_action.attention_by_segment.default
    assert [_kind(of_gpu), _kind(of_cpu)] == ["attention", "attention"]
    assert _kind(torch.ops.aten.add.Tensor) == ""
