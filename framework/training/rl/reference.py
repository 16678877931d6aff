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
    """The live model without its adapters, where a stage began with adapters that changed nothing yet (`bare`); and a
    copy of this rank's share of the other weights that train, on the CPU: those that do not are the policy's own.

    The live model becomes the reference while it is asked, so that no second model has to be placed on the mesh. Where
    adapters alone train, that takes no copy at all.
    """

    def __init__(self, model: nn.Module, bare: bool) -> None:
        self.model = model
        self.bare = bare
        self.kept = {name: _local(p).to("cpu", copy=True) for name, p in _copied(model, bare)}

    @classmethod
    def kept_in(
        cls,
        store: CheckpointStore,
        model: nn.Module,
        optimizer: Optimizer,
        dp_rank: DataRank,
        begun: bool | None = None,
    ) -> Reference:
        """The reference that `store` holds; where it holds none, `model` as it is, stored for later attempts if any of
        its weights are copied (collective). `model` is left with the reference's weights.

        `begun` says of a stage that is resumed whether it had a reference (None: it begins now). Its first weights are
        gone where it had none, or one with a copy that is lost: raises `CheckpointError`.
        """
        newest = store.newest()
        if newest is not None:
            store.load_weights(newest, model)
        bare = _unchanged(model, dp_rank)
        copies = any(_copied(model, bare))
        if newest is None and begun is not None and (copies or not begun):
            raise CheckpointError(
                f"{store.folder}: no reference of the divergence is there, and the stage is resumed, so that the "
                "weights it began with are gone; restore the folder, leave objective.kl as it was when the stage "
                "began, or begin it again under another run.name"
            )
        if newest is None and copies:
            store.save(0, 1, model, optimizer, {}, {})
            store.finish()
        return cls(model, bare)

    @contextmanager
    def asked(self) -> Iterator[None]:
        """The model is the reference."""
        reshard(self.model)
        policy = {name: _local(p).clone() for name, p in _copied(self.model, self.bare)}
        self._become(self.kept)
        try:
            with without_adapters(self.model) if self.bare else nullcontext():
                yield
        finally:
            reshard(self.model)
            self._become(policy)

    @torch.no_grad()
    def _become(self, weights: dict[str, Tensor]) -> None:
        for name, parameter in _copied(self.model, self.bare):
            _local(parameter).copy_(weights[name])


def _copied(model: nn.Module, bare: bool) -> Iterator[tuple[str, Tensor]]:
    """What trains, and is not of adapters that are left out of a `bare` model."""
    without = adapter_parameters(model) if bare else {}
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad and name not in without)


def _unchanged(model: nn.Module, dp_rank: DataRank) -> bool:
    """Whether the adapters change nothing, on any rank; an attempt that resumes is told so by adapters that are new."""
    device = next(model.parameters()).device
    return not max_over_ranks(int(adapters_have_effect(model)), device, dp_rank.group)


def _local(parameter: Tensor) -> Tensor:
    values = parameter.detach()
    return values.to_local() if isinstance(values, DTensor) else values
