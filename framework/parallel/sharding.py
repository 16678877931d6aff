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
"""Modules that keep their weights after the forward pass: torch does not tell."""


def shard(
    model: nn.Module,
    units: Sequence[nn.Module],
    mesh: DeviceMesh,
    precision: MixedPrecisionPolicy,
) -> None:
    """Shard each of `units`, in the order in which they run, then what is left of `model`, over the last dimension of
    `mesh`, replicated over the first.

    The last unit keeps its weights between forward and backward, which begins with it; what is left of the model keeps
    them until `reshard`, so that what is called beside the forward pass, as its head, finds them. Each unit gathers the
    next one's weights while it computes, in the format that `precision` says.
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
    """Whether the next backward pass reduces gradients over ranks: on the `last` micro-batch of a step alone."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)


def reshard(model: nn.Module) -> None:
    """Give up all gathered weights. Due before shards change: gathered ones do not change with them, and are what the
    model's parameters are as long as they are there.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Every rank holds all weights (collective at both ends), so that ranks may run as often as they like: ranks that
    generate texts of different lengths would otherwise wait for each other for ever.
    """
    if isinstance(model, FSDPModule):
        # Else the first part that runs, if it is not the model, takes itself for the root; torch has no public way.
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
