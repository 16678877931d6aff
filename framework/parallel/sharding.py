"""Fully sharded data parallelism (FSDP2: Zhao et al. 2023, arXiv 2304.11277), block by block."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

_KEPT: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Modules that keep their gathered weights after the forward pass; torch does not expose this."""


def shard(
    model: nn.Module,
    units: Sequence[nn.Module],
    mesh: DeviceMesh,
    precision: MixedPrecisionPolicy,
) -> None:
    """Shard each of `units`, given in execution order, then the rest of `model`, over the last dimension of `mesh`;
    replicate over the first of two.

    The last unit keeps its weights between forward and backward pass, which starts with it. The rest of the model keeps
    them until `reshard`, for modules that are called outside the forward pass, such as the head. While a unit computes,
    it gathers the next unit's weights, in the format of `precision`.
    """
    for unit in units:
        fully_shard(unit, mesh=mesh, mp_policy=precision, reshard_after_forward=unit is not units[-1])
    fully_shard(model, mesh=mesh, mp_policy=precision, reshard_after_forward=False)
    _KEPT.update((model, units[-1]))
    if isinstance(model, FSDPModule):
        model.set_reshard_after_backward(False, recurse=False)
        model.set_modules_to_backward_prefetch([unit for unit in units[-1:] if isinstance(unit, FSDPModule)])
    sharded = [unit for unit in units if isinstance(unit, FSDPModule)]
    for here, following in itertools.pairwise(sharded):
        here.set_modules_to_forward_prefetch([following])
        following.set_modules_to_backward_prefetch([here])


def synchronise(model: nn.Module, last: bool) -> None:
    """Make the next backward pass reduce gradients over ranks only on the `last` micro-batch of a step."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)


def reshard(model: nn.Module) -> None:
    """Free all gathered weights. To be called before shards change: gathered weights do not follow them, and stand for
    the model's parameters while they exist.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Gather all weights on every rank for the block (collective at both ends).

    Ranks may then run the model independently: ranks that generate texts of different lengths would deadlock otherwise.
    """
    if isinstance(model, FSDPModule):
        # Else the first part that runs becomes the root, even if it is not the model; torch has no public API.
        model._get_fsdp_state()._lazy_init()
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in sharded:
            module.reshard()
            module.set_reshard_after_forward(module not in _KEPT, recurse=False)
