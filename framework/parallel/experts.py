"""Tensor parallelism of a mixture of experts: each rank holds some of the experts, whole, and sees all tokens (as
expert parallelism in GShard: Lepikhin et al. 2020, arXiv 2006.16668, without its exchange of tokens: ranks of a tensor
dimension already have the same ones).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle


class Experts(ParallelStyle):
    """A module with weights `(experts, ...)` and `num_experts`, called with hidden states `(tokens, width)`, the
    experts chosen for each token `(tokens, k)` and their weights `(tokens, k)`. Its output on a rank becomes the sum
    over the ranks' experts.

    The module computes for experts 0 to `num_experts` - 1 and leaves out number `num_experts`, which stands for the
    experts of other ranks (`transformers`' experts do so while `_is_expert_parallel` is set).
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        experts: Any = module
        for name, parameter in list(module.named_parameters(recurse=False)):
            own = distribute_tensor(parameter, device_mesh, [Shard(0)])
            module.register_parameter(name, nn.Parameter(own, requires_grad=parameter.requires_grad))
        experts.num_experts //= device_mesh.size()
        experts._is_expert_parallel = True
        module.register_forward_pre_hook(lambda module, args: _own_part(module, device_mesh, *args))
        module.register_forward_hook(lambda module, args, output: _summed(module, device_mesh, output))
        return module


def _own_part(experts: Any, mesh: DeviceMesh, hidden: Tensor, chosen: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
    """The inputs for this rank's experts, which the module's forward pass sees as plain tensors meanwhile."""
    for name, parameter in experts.named_parameters(recurse=False):
        experts.__dict__[name] = parameter.to_local()  # found before the parameter of that name
    own = chosen - mesh.get_local_rank() * experts.num_experts
    others = (own < 0) | (own >= experts.num_experts)
    hidden, weights = _shared(hidden, mesh), _shared(weights, mesh)
    return hidden, own.masked_fill(others, experts.num_experts), weights.masked_fill(others, 0.0)


def _summed(experts: Any, mesh: DeviceMesh, output: Tensor) -> Tensor:
    for name, _ in experts.named_parameters(recurse=False):
        del experts.__dict__[name]
    parts = DTensor.from_local(output, mesh, [Partial()], run_check=False)
    return parts.redistribute(placements=[Replicate()]).to_local()


def _shared(values: Tensor, mesh: DeviceMesh) -> Tensor:
    """`values`, which all ranks have, whose gradients on the ranks are summed."""
    return DTensor.from_local(values, mesh, [Replicate()], run_check=False).to_local(grad_placements=[Partial()])
