"""Tensor parallelism of a fused query, key and value layer, by heads."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle
from torch.nn import functional as F


class FusedHeads(ParallelStyle):
    """A linear layer `(3 x heads x width, inputs)`: its outputs on a rank are queries, keys and values of the rank's
    heads, `(..., 3 x heads / ranks x width)`.

    A rank's heads lie in three places of the weights, a layout that neither FSDP nor checkpoints can express as a
    shard. So each rank keeps an even, contiguous run of rows, as of any layer cut by columns, and gathers the others
    when it computes with those of its heads. A layer's weights are smaller than what attention would send of its
    outputs.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        assert isinstance(module, nn.Linear)
        for name, parameter in list(module.named_parameters(recurse=False)):
            rows = distribute_tensor(parameter, device_mesh, [Shard(0)])
            module.register_parameter(name, nn.Parameter(rows, requires_grad=parameter.requires_grad))
        module.forward = partial(_forward, module, device_mesh)  # type: ignore[method-assign]
        return module


def _forward(module: nn.Linear, mesh: DeviceMesh, inputs: Tensor) -> Tensor:
    # The inputs' gradient on a rank comes from its heads alone; the ranks' gradients are summed.
    replicated = DTensor.from_local(inputs, mesh, [Replicate()], run_check=False).to_local(grad_placements=[Partial()])
    bias = None if module.bias is None else _of_rank(module.bias, mesh)
    return F.linear(replicated, _of_rank(module.weight, mesh), bias)


def _of_rank(rows: Tensor, mesh: DeviceMesh) -> Tensor:
    """The rows of this rank's heads: of queries, then keys, then values."""
    assert isinstance(rows, DTensor)
    gathered = rows.redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial()])
    own = gathered.unflatten(0, (3, mesh.size(), -1))[:, mesh.get_local_rank()]
    return torch.flatten(own, 0, 1)
