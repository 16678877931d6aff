"""Fake tensors of known sizes are what torch's own are, and what was remembered is made again alike."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from framework.training.planner.fake_mode import StaticFakeTensorMode

OPERATIONS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "product": lambda x, y: x * y,
    "with a whole number": lambda x, y: (x > 0).to(torch.int64) * 2,
    "with a fraction": lambda x, y: (x > 0).to(torch.int64) * 2.0,
    "another type": lambda x, y: x.to(torch.bfloat16),
    "another type of what is turned": lambda x, y: x.transpose(1, 2).to(torch.bfloat16),
    "another type, written out": lambda x, y: x.transpose(1, 2).to(
        torch.bfloat16, memory_format=torch.contiguous_format
    ),
    "like it, written out": lambda x, y: torch.empty_like(x.transpose(1, 2), memory_format=torch.contiguous_format),
    "like a part of one row": lambda x, y: torch.empty_like(x[:, :1], dtype=torch.float64),
    "product of parts of one row": lambda x, y: x[:1, :, :1] * y[:1, :, :1],
    "product of what is turned": lambda x, y: x.transpose(1, 2) * y.transpose(1, 2),
    "product with one that is turned": lambda x, y: x * y.view(2, 8, 4).transpose(1, 2),
    "product of two types": lambda x, y: x.to(torch.bfloat16) * y,
    "product of two sizes": lambda x, y: x * y[:1],
    "sum with whole numbers": lambda x, y: x + (y > 0).to(torch.int64),
    "root of whole numbers": lambda x, y: (x > 0).to(torch.int64).rsqrt(),
    "passes": lambda x, y: [
        *(each(x.to(torch.bfloat16)) for each in (F.gelu, F.silu, torch.neg, torch.rsqrt)),
        torch.ops.aten.gelu_backward(x, y),
        torch.ops.aten.silu_backward(x, y),
        torch.ops.aten.sub(x, y, alpha=2),
    ],
    "transposed": lambda x, y: x.transpose(1, 2),
    "turned and written out": lambda x, y: x.transpose(1, 2).contiguous(),
    "another shape": lambda x, y: x.transpose(1, 2).reshape(2, -1),
    "part of it": lambda x, y: x[:, 1:, ::2],
    "spread": lambda x, y: x[:, :1].expand(-1, 5, -1),
    "parts": lambda x, y: x.split(2, dim=2),
    "joined": lambda x, y: torch.cat([x, y], dim=1),
    "sum": lambda x, y: x.sum(dim=1),
    "norm": lambda x, y: F.layer_norm(x, (8,)),
    "attention": lambda x, y: F.scaled_dot_product_attention(x[:, None], y[:, None], y[:, None]),
    "written to": lambda x, y: x.clone().mul_(y),
    "like it": lambda x, y: torch.empty_like(x.transpose(1, 2), dtype=torch.int32),
    "of the meta device": lambda x, y: torch.empty_like(torch.empty(3, 4, device="meta"), device="cpu"),
    "known in value": lambda x, y: torch.tensor(3) + 1,
}


def _made(mode: FakeTensorMode, operation: Callable[[Tensor, Tensor], object]) -> list[object]:
    """All that a trace reads of what an operation makes, with which of its tensors share a storage."""
    x, y = torch.empty(2, 4, 8), torch.empty(2, 4, 8)
    tensors = [x, y, *(leaf for leaf in tree_leaves(operation(x, y)) if isinstance(leaf, Tensor))]
    storages = [each.untyped_storage()._cdata for each in tensors]
    return [
        (each.shape, each.stride(), each.storage_offset(), each.dtype, each.device, each.untyped_storage().nbytes())
        for each in tensors
    ] + [storages.index(each) for each in storages]


@pytest.mark.parametrize("name", OPERATIONS)
def test_results_are_those_of_torch(name: str) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True) as theirs:
        wanted = _made(theirs, OPERATIONS[name])
    with StaticFakeTensorMode() as ours:
        assert _made(ours, OPERATIONS[name]) == wanted
        assert _made(ours, OPERATIONS[name]) == wanted, "as it is remembered"


def test_what_shares_a_storage_is_not_remembered() -> None:
    with StaticFakeTensorMode():
        for _ in range(2):
            x = torch.empty(2, 6)
            flat = torch.ops.aten._unsafe_view.default(x, [12])
            assert flat.untyped_storage()._cdata == x.untyped_storage()._cdata


def test_numbers_that_are_equal_differ_by_their_type() -> None:
    with StaticFakeTensorMode():
        whole = torch.empty(3, dtype=torch.int64)
        types = [torch.ops.aten.mul.Scalar(whole, number).dtype for number in (2, 2.0, 1, True)]
    assert types == [torch.int64, torch.float32, torch.int64, torch.int64]
