"""Fake tensors for the memory trace: they have shapes and no data, and every size is known."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._prims_common import is_non_overlapping_and_dense_or_false, make_contiguous_strides_for
from torch._subclasses.fake_impls import op_implementations_checks
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager
from torch.utils._pytree import TreeSpec, arg_tree_leaves, tree_flatten, tree_map_only, tree_unflatten

META = torch.device("meta")
BY_KERNEL = frozenset(
    {torch.ops.aten._to_copy.default, torch.ops.aten.empty_like.default, torch.ops.aten._unsafe_view.default}
)
"""Operations with rules for fake tensors that matter to symbolic sizes and to other devices alone."""
COPIES = frozenset({torch.ops.aten._to_copy.default, torch.ops.aten.empty_like.default})
"""Operations that make a tensor with the sizes and strides of their only one, of the type and on the device asked."""
USUAL = (None, False, torch.strided, torch.preserve_format)
"""Values of their arguments that ask for nothing else."""
POINTWISE = frozenset(
    {
        torch.ops.aten.add.Tensor,
        torch.ops.aten.gelu.default,
        torch.ops.aten.gelu_backward.default,
        torch.ops.aten.mul.Tensor,
        torch.ops.aten.neg.default,
        torch.ops.aten.rsqrt.default,
        torch.ops.aten.silu.default,
        torch.ops.aten.silu_backward.default,
        torch.ops.aten.sub.Tensor,
    }
)
"""Operations whose result is like their tensors, where these are of one size and one type of fractions."""


@dataclass(frozen=True, slots=True)
class NewTensor:
    """A tensor that an operation makes, with a storage of its own."""

    shape: tuple[int, ...]
    """Its sizes."""
    stride: tuple[int, ...]
    """Its strides, in numbers."""
    dtype: torch.dtype
    """The type of its numbers."""
    device: torch.device
    """Where it would be."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an operation makes of inputs of certain sizes."""

    leaves: tuple[Any, ...]
    """Its results; a `NewTensor` for each tensor."""
    structure: TreeSpec
    """How they are nested."""


class StaticFakeTensorMode(FakeTensorMode):
    """Fake tensors whose sizes are all known. An operation runs its own meta kernel, where it has one, and not its
    decomposition into many operations: the result is the same, in a fraction of the time.

    Layers repeat operations, and so does recomputation: what an operation has made of inputs is remembered. torch does
    so too, but looks for symbolic sizes, constants and subclasses in each operation, which takes most of the time.
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.cache_enabled = False
        self._outcomes: dict[Hashable, Outcome | None] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: nothing compiles this mode, so its operations need no guard against that."""
        return False

    def cpp_meta_supports_symint(self, func: Any) -> bool:
        """Whether the meta kernel of `func` may run: torch asks, as few of them bear symbolic sizes."""
        return _has_meta_kernel(func.name()) or super().cpp_meta_supports_symint(func)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The results of an operation."""
        kwargs = kwargs or {}
        tensors = [leaf for leaf in arg_tree_leaves(*args, **kwargs) if isinstance(leaf, Tensor)]
        if not _is_functional(func) or not all(map(self._has_shape_alone, tensors)):
            return self.dispatch(func, types, args, kwargs)
        key = None if func.is_view else (func, _facts(args), _facts(tuple(kwargs.items())))
        if (outcome := self._outcomes.get(key)) is not None:
            leaves = [self._new(each) if isinstance(each, NewTensor) else each for each in outcome.leaves]
            return tree_unflatten(leaves, outcome.structure)
        if key is not None and (alike := _alike(func, args, kwargs)) is not None:
            self._outcomes[key] = Outcome((alike,), tree_flatten(alike)[1])
            return self._new(alike)
        devices = {each.device for each in tensors}
        if _runs_plainly(func) and len(devices) == 1 and META not in devices and kwargs.get("device") is None:
            with in_kernel_invocation_manager(self):
                made = func(*args, **kwargs)
            result = tree_map_only(Tensor, functools.partial(self._fake, device=devices.pop()), made)
        else:
            result = self.dispatch(func, types, args, kwargs)
        if key is not None and key not in self._outcomes:
            self._outcomes[key] = _outcome(result, tensors)
        return result

    def _has_shape_alone(self, tensor: Tensor) -> bool:
        """Whether a tensor is one of this mode's whose value is not known, or on the meta device."""
        if self.is_our_fake(tensor):
            return tensor.constant is None
        return type(tensor) in (Tensor, nn.Parameter) and tensor.device == META

    def _fake(self, meta: Tensor, device: torch.device) -> FakeTensor:
        return self.fake_tensor_converter.from_meta_and_device(self, meta, device)

    def _new(self, tensor: NewTensor) -> FakeTensor:
        empty = torch.empty_strided(tensor.shape, tensor.stride, dtype=tensor.dtype, device=META)
        return self._fake(empty, tensor.device)


@functools.cache
def _has_meta_kernel(operation: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(operation, "Meta")


@functools.cache
def _is_functional(func: Any) -> bool:
    """Whether an operation is one of torch's own that writes to none of its inputs."""
    return isinstance(func, torch._ops.OpOverload) and func.namespace == "aten" and not func._schema.is_mutable


@functools.cache
def _runs_plainly(func: Any) -> bool:
    """Whether a kernel alone says what an operation makes of tensors of one device, where no size is symbolic."""
    ruled = any(applies(func) for applies, _ in op_implementations_checks)
    return func in BY_KERNEL or func.is_view or (_has_meta_kernel(func.name()) and not ruled)


def _alike(func: Any, args: Any, kwargs: Any) -> NewTensor | None:
    """What the commonest operations make of tensors without gaps, where that needs no kernel; None for all others."""
    first = args[0] if args else None
    if not isinstance(first, Tensor) or not is_non_overlapping_and_dense_or_false(first):
        return None
    if func in COPIES:
        dtype, device = kwargs.get("dtype") or first.dtype, kwargs.get("device") or first.device
        plain = all(value in USUAL for name, value in kwargs.items() if name not in ("dtype", "device"))
        return NewTensor(tuple(first.shape), first.stride(), dtype, device) if plain and device.type == "cpu" else None
    if func in POINTWISE and first.is_contiguous() and first.dtype.is_floating_point and first.device.type == "cpu":
        others = [each for each in args if isinstance(each, Tensor)]
        if all(
            (each.shape, each.stride(), each.dtype) == (first.shape, first.stride(), first.dtype) for each in others
        ):
            strides = make_contiguous_strides_for(first.shape)
            return NewTensor(tuple(first.shape), strides, first.dtype, first.device)
    return None


def _facts(value: Any) -> Hashable:
    """All of an operation's argument that its results depend on. 1, 1.0 and True differ."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.storage_offset(), value.dtype, value.device
    if isinstance(value, list | tuple):
        return tuple(map(_facts, value))
    return type(value), value


def _outcome(result: Any, inputs: Iterable[Tensor]) -> Outcome | None:
    """What to remember of an operation's `result`; None where it is more than new tensors: a part of its `inputs`, of
    one another or of a larger storage, or known in value.
    """
    leaves, structure = tree_flatten(result)
    taken = {each.untyped_storage()._cdata for each in inputs}
    kept: list[Any] = []
    for leaf in leaves:
        if not isinstance(leaf, FakeTensor):
            kept.append(leaf)
            continue
        storage, new = leaf.untyped_storage(), NewTensor(tuple(leaf.shape), leaf.stride(), leaf.dtype, leaf.device)
        least = torch.empty_strided(new.shape, new.stride, dtype=new.dtype, device=META).untyped_storage()
        if storage._cdata in taken or storage.nbytes() != least.nbytes() or leaf.constant is not None:
            return None
        taken.add(storage._cdata)
        kept.append(new)
    return None if any(isinstance(each, Tensor) for each in kept) else Outcome(tuple(kept), structure)
