"""Sequence parallelism (Korthikanti et al. 2022, arXiv 2205.05198, section 4.2.2): between the layers that tensor
parallelism cuts, each rank holds a contiguous run of the positions. Sums over ranks are scattered over positions, and
gathered before the next such layer: as many bytes as an all-reduce, for a fraction of the norms' and residuals' memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle, RowwiseParallel

TIME = 1
"""The dimension of positions in hidden states `(batch, time, width)`."""


class Positions:
    """Which positions the ranks of `mesh` hold: each its run, or all of them (`spread` False) when their number is not
    divisible, as when an answer grows by one token.
    """

    def __init__(self, mesh: DeviceMesh) -> None:
        self.mesh = mesh
        self.spread = False

    @property
    def layout(self) -> Placement:
        """Current placement of hidden states on the ranks."""
        return Shard(TIME) if self.spread else Replicate()

    def lying(self, hidden: Tensor) -> DTensor:
        """This rank's hidden states as a DTensor of all."""
        return DTensor.from_local(hidden, self.mesh, [self.layout], run_check=False)

    def gathered(self, hidden: Tensor) -> DTensor:
        """The hidden states of all positions, on every rank."""
        return self.lying(hidden).redistribute(placements=[Replicate()])


def positions_of_rank(norm: nn.Module, length: int) -> int:
    """Positions, of `length`, that a rank holds between layers, given the model's last `norm`."""
    ranks = norm.weight.device_mesh.size() if isinstance(norm.weight, DTensor) else 1
    return length if length % ranks else length // ranks


class FirstBlock(ParallelStyle):
    """The transformer block from which on positions are spread. It is called with hidden states and the keyword
    `position_embeddings`, a pair of `(batch, time, width)`.
    """

    def __init__(self, positions: Positions) -> None:
        self.positions = positions

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        module.register_forward_pre_hook(self._spread, with_kwargs=True)
        return module

    def _spread(self, module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
        hidden, *others = args
        self.positions.spread = False
        every = self.positions.lying(hidden)
        self.positions.spread = hidden.shape[TIME] % self.positions.mesh.size() == 0
        return (every.redistribute(placements=[self.positions.layout]).to_local(), *others), named


class Gathered(ParallelStyle):
    """Attention or an MLP: it reads all positions, once for all layers in it that are cut by columns."""

    def __init__(self, positions: Positions) -> None:
        self.positions = positions

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        module.register_forward_pre_hook(self._gather, with_kwargs=True)
        return module

    def _gather(self, module: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Any, Any]:
        if args:
            return (self._every(args[0]), *args[1:]), named
        return args, {**named, "hidden_states": self._every(named["hidden_states"])}

    def _every(self, hidden: Tensor) -> Tensor:
        return self.positions.gathered(hidden)


class Whole(Gathered):
    """A module that every rank runs on all positions, with all its weights; each keeps the results of its positions."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        module = super()._apply(module, device_mesh)
        module.register_forward_hook(self._own)
        return module

    def _every(self, hidden: Tensor) -> Tensor:
        # Every rank computes all positions' gradients alike, and keeps its own.
        return self.positions.gathered(hidden).to_local()

    def _own(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        every = DTensor.from_local(output, self.positions.mesh, [Replicate()], run_check=False)
        return every.redistribute(placements=[self.positions.layout]).to_local()


class ScatteredRows(RowwiseParallel):
    """A layer that is cut by its inputs, whose sums go to the ranks that have the positions."""

    def __init__(self, positions: Positions) -> None:
        super().__init__(output_layouts=Partial(), use_local_output=False)
        self.positions = positions

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        module = super()._apply(module, device_mesh)
        module.register_forward_hook(self._scatter)
        return module

    def _scatter(self, module: nn.Module, args: Any, output: DTensor) -> Tensor:
        return output.redistribute(placements=[self.positions.layout]).to_local()


class SpreadNorm(ParallelStyle):
    """A norm of the positions that a rank has; the `last` one gives all positions to every rank."""

    def __init__(self, positions: Positions, last: bool = False) -> None:
        self.positions = positions
        self.last = last

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        for name, parameter in list(module.named_parameters(recurse=False)):
            every = distribute_tensor(parameter, device_mesh, [Replicate()])
            module.register_parameter(name, nn.Parameter(every, requires_grad=parameter.requires_grad))
        module.register_forward_pre_hook(lambda module, args: (self.positions.lying(args[0]), *args[1:]))
        module.register_forward_hook(self._local)
        return module

    def _local(self, module: nn.Module, args: Any, output: DTensor) -> Tensor:
        return (output.redistribute(placements=[Replicate()]) if self.last else output).to_local()


class Injections(ParallelStyle):
    """A language model into whose hidden states features of pictures are added after its first blocks (Qwen3-VL's
    DeepStack: Meng et al. 2024, arXiv 2406.04334): each rank adds those of its positions.
    """

    def __init__(self, positions: Positions) -> None:
        self.positions = positions

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        language: Any = module
        language._deepstack_process = self._add
        return module

    def _add(self, hidden: Tensor, places: Tensor, features: Tensor) -> Tensor:
        """Add `features` `(n, width)` at `places`: True entries of `(batch, time)`, row by row, or flat indices."""
        features, mesh, width = features.to(hidden.dtype), self.positions.mesh, hidden.shape[-1]
        flat = places.flatten().nonzero()[:, 0] if places.dtype == torch.bool else places
        if not self.positions.spread:
            return hidden.flatten(0, 1).index_add(0, flat, features).view(hidden.shape)
        # Their gradient is in parts, of the positions that each rank has.
        every = DTensor.from_local(features, mesh, [Replicate()], run_check=False)
        own, ranks = hidden.shape[TIME], mesh.size()
        everywhere = hidden.new_zeros(len(hidden) * own * ranks, width)
        everywhere = everywhere.index_copy(0, flat, every.to_local(grad_placements=[Partial()]))
        start = mesh.get_local_rank() * own
        return hidden + everywhere.view(len(hidden), own * ranks, width)[:, start : start + own]
