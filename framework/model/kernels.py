"""Kernels of libraries in place of the language model's own arithmetic, and of logits and loss as one."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from framework.recipe.component import component

FAMILY = "qwen3_vl"
"""The family whose modules Liger's kernels replace: others scale norms by one plus the weight, or have experts."""
CHUNK = 4096
"""Positions whose largest logits are sought at a time."""


class LanguageModel(Protocol):
    """A model with arithmetic to replace (`LanguageActionModel`)."""

    backbone: Any
    """The network of transformers."""

    def head(self, hidden: Tensor, /) -> Tensor:
        """Logits of hidden states."""
        ...


class Kernels(Protocol):
    """What replaces a model's arithmetic."""

    needs_gpu: bool
    """Whether a CPU cannot run it."""

    def apply(self, model: LanguageModel) -> None:
        """Replace it, in place. Parameters and their names stay. Raises `ValueError` where it cannot run."""
        ...


@component
@dataclass(frozen=True)
class LigerKernels:
    """Triton kernels of Liger (Hsu et al. 2024, arXiv 2410.10989) for Qwen3-VL's language model.

    Norms and gated products take one pass over memory each, and the loss never holds all logits: it computes their
    gradient in the forward pass, chunk by chunk, and sums that of the head in float32. Rotary embeddings stay as they
    are: transformers shares their function among all models of the process.
    """

    norms: bool = True
    """RMS norms, those of queries and keys included."""
    mlp: bool = True
    """silu(gate) * up."""
    loss: bool = True
    """Logits and cross-entropy."""
    needs_gpu = True

    def apply(self, model: LanguageModel) -> None:
        """See `Kernels`. On the meta device, where nothing is computed, nothing is replaced."""
        if torch.get_default_device().type == "meta":
            return
        family = model.backbone.config.model_type
        if family != FAMILY:
            raise ValueError(f"model.kernels: Liger's are of {FAMILY}, the backbone is {family}; set it to null")
        if not torch.cuda.is_available() and not interpreted():
            raise ValueError("model.kernels: Liger's kernels need a GPU; choose model/kernels=eager or fused_loss")
        norm, gated = _liger("rms_norm", "LigerRMSNormFunction"), _liger("swiglu", "LigerSiLUMulFunction")
        for module in model.backbone.model.language_model.modules():
            kind = type(module).__name__
            if self.norms and kind.endswith("RMSNorm"):
                _replace(module, functools.partial(_norm, norm, module))
            elif self.mlp and kind.endswith("TextMLP"):
                _replace(module, functools.partial(_mlp, gated, module))
        if self.loss:
            model.head = LossHead(model.head, model.backbone.get_output_embeddings, "liger")  # type: ignore[method-assign]


@component
@dataclass(frozen=True)
class FusedLoss:
    """Logits and cross-entropy as one function of torch (2.13 and later), which computes gradients in the forward pass
    chunk by chunk and never holds all logits. On any device.

    The share of right tokens, a metric, costs another product by the head.
    """

    needs_gpu = False

    def apply(self, model: LanguageModel) -> None:
        """See `Kernels`."""
        if not hasattr(F, "linear_cross_entropy"):
            raise ValueError(
                f"model.kernels: torch {torch.__version__} has no fused loss; install 2.13, or set it to null"
            )
        model.head = LossHead(model.head, model.backbone.get_output_embeddings, "torch")  # type: ignore[method-assign]


class LossHead:
    """A model's head that also computes the loss of its logits.

    Args:
        logits: Maps hidden states to logits.
        output: Returns the layer of the head.
        kernel: What computes the loss.
    """

    def __init__(
        self, logits: Callable[[Tensor], Tensor], output: Callable[[], nn.Module], kernel: Literal["liger", "torch"]
    ) -> None:
        self.logits = logits
        self.output = output
        self.kernel = kernel

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states, see `LanguageActionModel.head`."""
        return self.logits(hidden)

    def cross_entropy(self, hidden: Tensor, targets: Tensor, smoothing: float) -> tuple[Tensor, Tensor] | None:
        """The summed loss of `hidden` `(n, width)` against `targets` `(n,)` in float32, and how often the largest logit
        is the target's. None where the logits must do: the head is no plain layer (an adapter, shards), torch smooths
        labels, or there is nothing to compute.
        """
        layer = self.output()
        if self.kernel == "torch" and smoothing:
            return None  # its chunks know no smoothing
        if type(layer) is not nn.Linear or type(layer.weight.data) is not Tensor or not len(targets):
            return None
        device = hidden.device.type
        wanted = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else layer.weight.dtype
        hidden, weight = hidden.to(wanted), layer.weight.to(wanted)
        with torch.autocast(device, enabled=False):
            return _KERNELS[self.kernel](hidden, weight, targets, smoothing)


def interpreted() -> bool:
    """Whether Triton's interpreter runs its kernels, on a CPU too: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _liger_loss(hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    fused = _liger("fused_linear_cross_entropy", "LigerFusedLinearCrossEntropyFunction")
    loss, _, accuracy, _ = fused.apply(
        hidden, weight, targets, None, None, -100, 0.0, smoothing, "sum", None, False, torch.float32, False, True
    )
    return loss, (accuracy * len(targets)).round()


def _torch_loss(hidden: Tensor, weight: Tensor, targets: Tensor, _: float) -> tuple[Tensor, Tensor]:
    # A sum in bfloat16 is off by percents: each position's loss is added here.
    losses = F.linear_cross_entropy(
        hidden,
        weight,
        targets,
        reduction="none",
        options=torch.nn.LinearCrossEntropyOptions(acc_policy="accurate"),
    )
    with torch.no_grad():
        right = [
            (F.linear(states, weight).argmax(-1) == of).sum()
            for states, of in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True)
        ]
    return losses.float().sum(), torch.stack(right).sum()


_KERNELS = {"liger": _liger_loss, "torch": _torch_loss}


@functools.cache
def _liger(module: str, function: str) -> Any:
    try:
        return getattr(importlib.import_module(f"liger_kernel.ops.{module}"), function)
    except ImportError as error:
        raise ValueError(
            "model.kernels: Liger's need liger-kernel: pip install '.[kernels]', or choose model/kernels=eager"
        ) from error


def _replace(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> None:
    module.forward = forward


def _norm(function: Any, module: Any, hidden: Tensor) -> Tensor:
    """RMS norm of `(..., n)` in the type of `hidden`; the square's mean and the root are in float32."""
    if not _runs_on(hidden):
        return type(module).forward(module, hidden)
    return function.apply(hidden, module.weight, module.variance_epsilon, 0.0, "llama", False)


def _mlp(function: Any, module: Any, hidden: Tensor) -> Tensor:
    """down(silu(gate(x)) * up(x)) of `(..., n)`."""
    if not _runs_on(hidden):
        return type(module).forward(module, hidden)
    return module.down_proj(function.apply(module.gate_proj(hidden), module.up_proj(hidden)))


def _runs_on(hidden: Tensor) -> bool:
    """Whether Triton's kernels run where `hidden` is: a model on a GPU machine may be used on its CPU, too."""
    return hidden.is_cuda or (interpreted() and type(hidden) is Tensor)
