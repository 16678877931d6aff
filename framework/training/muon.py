"""Muon for matrices, AdamW for everything else, as one optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate
from torch.optim import Optimizer

from framework.recipe.component import component
from framework.recipe.ranges import Decay, LearningRate, PositiveWeight, WeightDecay

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of the polynomial in a matrix's singular values that an iteration applies. They maximize its slope at
zero, so that singular values end between about 0.7 and 1.2 rather than at 1."""


@component
class Muon(Optimizer):
    """Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks") for the groups marked as
    `matrices` (see `framework.model.param_groups`), AdamW for embeddings, the head, norms, biases and other vectors.

    A matrix's update is its momentum with all singular values brought near 1, by Newton-Schulz iterations, times

        lr * matrix_rms * sqrt(longer side),

    so that it has the root mean square `lr * matrix_rms` whatever the matrix's shape. AdamW's updates have about 0.2
    times the learning rate (Liu et al. 2025, arXiv 2502.16982): with the default, a learning rate and a weight decay
    that were found for AdamW serve unchanged. A model trained from scratch gains by four times as much.

    torch's own Muon takes two-dimensional parameters alone and leaves the others to a second optimizer; a stage has
    one. This one also updates stacks of experts, `(experts, rows, columns)`, matrix by matrix. Sharded parameters keep
    a sharded momentum; each rank gathers one parameter at a time (a stack of experts whole), orthogonalizes it and
    keeps its shard of the result, so that every mesh trains alike. GPUs iterate in bfloat16, CPUs in float32. Weights
    should be in float32: in bfloat16, updates smaller than a 256th of a weight are lost.

    Args:
        params: Parameter groups; `matrices: true` marks those that Muon updates.
        lr: Learning rate; the schedule scales it.
        betas: AdamW's decay rates of the first and second moment.
        eps: AdamW's addition to the root of the second moment.
        weight_decay: Decoupled weight decay of all parameters, scaled by the learning rate.
        momentum: Decay rate of the matrices' momentum, which is applied as Nesterov's.
        matrix_rms: Root mean square of a matrix's update at a learning rate of 1.
        iterations: Newton-Schulz iterations.
        fused: Whether AdamW updates a group in one kernel.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: LearningRate = 1e-3,
        betas: tuple[Decay, Decay] = (0.9, 0.95),
        eps: Annotated[float, Interval(gt=0, le=1)] = 1e-8,
        weight_decay: WeightDecay = 0.1,
        momentum: Decay = 0.95,
        matrix_rms: PositiveWeight = 0.2,
        iterations: Annotated[int, Interval(ge=1, le=20)] = 5,
        fused: bool = True,
    ) -> None:
        groups = [{"matrices": False, **group} for group in params]
        # It fills the groups with its own defaults.
        self._adamw = torch.optim.AdamW(groups, lr, betas, eps, weight_decay, fused=fused)
        super().__init__(self._adamw.param_groups, {})
        self._step_supports_amp_scaling = fused  # by `found_inf`, as torch's fused optimizers do
        self.found_inf: Tensor | None = None
        self.momentum, self.matrix_rms, self.iterations = momentum, matrix_rms, iterations

    def gathers(self, group: dict[str, Any]) -> bool:
        """Whether the update of a parameter of `group` needs it whole, however it is sharded; for the memory plan."""
        return bool(group["matrices"])

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # torch overloads
        """Update all parameters that have a gradient, unless `found_inf` is 1. Returns the loss of `closure`, if it is
        given.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        taken: Tensor | float = 1.0 if self.found_inf is None else 1 - self.found_inf.double()
        for group in self.param_groups:
            if group["matrices"]:
                kept = 1 - group["lr"] * group["weight_decay"] * taken
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._update(parameter, group["lr"], kept, taken)
        # Loading a checkpoint replaces groups and state.
        self._adamw.param_groups = [group for group in self.param_groups if not group["matrices"]]
        self._adamw.state = self.state
        if self._step_supports_amp_scaling:
            self._adamw.found_inf = self.found_inf  # type: ignore[attr-defined]  # set by users, as GradScaler does
        self._adamw.step()
        return loss

    def _update(self, parameter: Tensor, lr: float, kept: Tensor | float, taken: Tensor | float) -> None:
        """Update a matrix, of which the decay leaves the share `kept`, if the step is `taken`: 1, else 0."""
        gradient = parameter.grad
        assert gradient is not None
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(gradient)
        momentum = state["momentum"]
        if isinstance(taken, Tensor):
            gradient = torch.where(taken > 0, gradient, momentum)  # which leaves the momentum as it is
        momentum.lerp_(gradient, 1 - self.momentum)
        update = _orthogonal(gradient.lerp(momentum, self.momentum), self.iterations)
        rate = lr * self.matrix_rms * math.sqrt(max(parameter.shape[-2:]))
        parameter.mul_(kept).add_(update.mul_(taken), alpha=-rate)


def _orthogonal(update: Tensor, iterations: int) -> Tensor:
    """`orthogonalize` of a tensor that may be sharded, sharded likewise."""
    if not isinstance(update, DTensor):
        return orthogonalize(update, iterations)
    whole = orthogonalize(update.full_tensor(), iterations)
    mesh = update.device_mesh
    return DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False).redistribute(
        mesh, update.placements
    )


def orthogonalize(matrices: Tensor, iterations: int) -> Tensor:
    """Matrices `(..., m, n)` with their singular values brought near 1, in the dtype given.

    Each iteration maps the singular values s to a s + b s^3 + c s^5 with the coefficients `QUINTIC`. A matrix of zeros
    stays one.
    """
    a, b, c = QUINTIC
    x = matrices.to(torch.bfloat16 if matrices.is_cuda else torch.float32)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)  # no singular value exceeds 1
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x.mT if tall else x).to(matrices.dtype)
