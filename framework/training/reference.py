"""The reference of a divergence: the weights that a stage began with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from framework.checkpoint.store import CheckpointStore
from framework.parallel.sharding import reshard


class Reference:
    """A copy of this rank's share of the weights that train, on the CPU: the others are the policy's own.

    The live model becomes the reference while it is asked, so that no second model has to be placed on the mesh.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.kept = {name: _local(p).to("cpu", copy=True) for name, p in self._trained()}

    @classmethod
    def kept_in(cls, store: CheckpointStore, model: nn.Module, optimizer: Optimizer) -> Reference:
        """The reference that `store` holds; where it holds none, `model` as it is, which is stored for later attempts
        (collective). `model` is left with the reference's weights.
        """
        newest = store.newest()
        if newest is None:
            store.save(0, 1, model, optimizer, {}, {})
            store.finish()
        else:
            store.load_weights(newest, model)
        return cls(model)

    @contextmanager
    def asked(self) -> Iterator[None]:
        """The model is the reference."""
        reshard(self.model)
        policy = {name: _local(p).clone() for name, p in self._trained()}
        self._become(self.kept)
        try:
            yield
        finally:
            reshard(self.model)
            self._become(policy)

    def _trained(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)

    @torch.no_grad()
    def _become(self, weights: dict[str, Tensor]) -> None:
        for name, parameter in self._trained():
            _local(parameter).copy_(weights[name])


def _local(parameter: Tensor) -> Tensor:
    values = parameter.detach()
    return values.to_local() if isinstance(values, DTensor) else values
