"""The reference of a divergence: the model that a stage began with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from framework.checkpoint.manifest import CheckpointError
from framework.checkpoint.store import CheckpointStore
from framework.model.lora import adapter_parameters, adapters_have_effect, without_adapters
from framework.parallel.collectives import max_over_ranks
from framework.parallel.mesh import DataRank
from framework.parallel.sharding import reshard


class Reference:
    """Turns the live model into the reference for a while, so that no second model has to be placed on the mesh.

    Frozen weights are the policy's own. Of the weights that train, this rank's shard is copied to the CPU. Adapters
    that changed nothing when the stage began need no copy: they are switched off. So where adapters alone train,
    nothing is copied.

    Args:
        model: The live model, with the reference's weights.
        adapter_free: Whether the reference is the model without its adapters.
    """

    def __init__(self, model: nn.Module, adapter_free: bool) -> None:
        self.model = model
        self.adapter_free = adapter_free
        self.weights = {name: _local(p).to("cpu", copy=True) for name, p in _copied(model, adapter_free)}

    @classmethod
    def from_store(
        cls,
        store: CheckpointStore,
        model: nn.Module,
        optimizer: Optimizer,
        dp_rank: DataRank,
        had_reference: bool | None = None,
    ) -> Reference:
        """Returns the reference in `store`, and leaves `model` with its weights; where there is none, `model` as it is
        becomes the reference, and is saved for later attempts if any weights are copied (collective).

        `had_reference` says whether a resumed stage had a reference; None where the stage starts. Raises
        `CheckpointError` where a resumed stage had none, or had one whose copy is lost: its first weights are gone.
        """
        newest = store.newest()
        if newest is not None:
            store.load_weights(newest, model)
        fresh_adapters = _adapters_are_fresh(model, dp_rank)
        copies = any(_copied(model, fresh_adapters))
        if newest is None and had_reference is not None and (copies or not had_reference):
            raise CheckpointError(
                f"{store.folder}: no reference of the divergence, and the weights that the resumed stage began with "
                "are gone; restore the folder, leave objective.kl as it was when the stage began, or start it again "
                "under another run.name"
            )
        if newest is None and copies:
            store.save(0, 1, model, optimizer, {}, {})
            store.finish()
        return cls(model, fresh_adapters)

    @contextmanager
    def active(self) -> Iterator[None]:
        """In the body the model is the reference."""
        reshard(self.model)
        policy = {name: _local(p).clone() for name, p in _copied(self.model, self.adapter_free)}
        self._load(self.weights)
        try:
            with without_adapters(self.model) if self.adapter_free else nullcontext():
                yield
        finally:
            reshard(self.model)
            self._load(policy)

    @torch.no_grad()
    def _load(self, weights: dict[str, Tensor]) -> None:
        for name, parameter in _copied(self.model, self.adapter_free):
            _local(parameter).copy_(weights[name])


def _copied(model: nn.Module, adapter_free: bool) -> Iterator[tuple[str, Tensor]]:
    """The parameters that train; those of the adapters only where the reference has them."""
    left_out = adapter_parameters(model) if adapter_free else {}
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad and name not in left_out)


def _adapters_are_fresh(model: nn.Module, dp_rank: DataRank) -> bool:
    """Whether the adapters change nothing, on any rank. That also tells a resumed attempt that they were fresh."""
    device = next(model.parameters()).device
    return not max_over_ranks(int(adapters_have_effect(model)), device, dp_rank.group)


def _local(parameter: Tensor) -> Tensor:
    values = parameter.detach()
    return values.to_local() if isinstance(values, DTensor) else values
