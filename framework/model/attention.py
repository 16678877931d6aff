"""The choice of a backbone's attention implementation by what is installed and can run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from framework.model.segments import LANGUAGE, TOWER, register

FLASH = {"flash_attention_3": (9,), "flash_attention_2": (8, 9)}
"""Names in `transformers` of the kernels for samples of any length in one row, best first (Shah et al. 2024, arXiv
2407.08608; Dao 2023, arXiv 2307.08691), and the major CUDA capabilities that they support: 8 is Ampere and Ada, 9 is
Hopper."""


def attention_kernels(wanted: str) -> str:
    """The name in `transformers` of the implementation `wanted`.

    `auto` and `varlen` compute all samples of a micro-batch as one row, by their lengths and without a mask (see
    `framework.model.segments`), on GPUs before Ampere sample by sample; `flash` requires the package's kernels; `flex`
    is torch's FlexAttention; anything else is a name of `transformers` already. `sdpa` and `eager` mask padding and
    other samples.

    The flash kernels compute in bfloat16 only and cannot share a prompt among answers. On the meta device, where
    nothing is computed, `sdpa` replaces flash kernels that are missing. Elsewhere raises `ValueError` where `flash` is
    required and cannot run.
    """
    if wanted in ("auto", LANGUAGE):
        register()
        return LANGUAGE
    if wanted != "flash":
        return "flex_attention" if wanted == "flex" else wanted
    kernels = next((name for name in FLASH if _runs(name)), None)
    if kernels is None and torch.get_default_device().type != "meta":
        raise ValueError(
            "model.backbone.attention: flash needs an Ampere, Ada or Hopper GPU and the package flash-attn (or "
            "flash-attn-3); install one, or give auto"
        )
    return kernels or "sdpa"


def attend_by_lengths(network: Any) -> None:
    """Let the vision tower attend by the lengths of its frames, and take the places of features as indices, where the
    language model attends by lengths. A tower's name may not be set before: transformers looks for a kernel of it.

    Raises `ValueError` for an architecture that drops weights of attention, which no kernel for lengths does.
    """
    language, visual = network.model.language_model, network.model.visual
    if language.config._attn_implementation == LANGUAGE:
        if language.config.attention_dropout:
            raise ValueError(
                f"model.backbone: attention_dropout is {language.config.attention_dropout}, and attention by lengths "
                "drops nothing: set it to 0, or model.backbone.attention=sdpa"
            )
        visual.config._attn_implementation = TOWER
    if hasattr(language, "_deepstack_process"):
        language._deepstack_process = add_features


def add_features(hidden: Tensor, places: Tensor, features: Tensor) -> Tensor:
    """Hidden states `(b, t, d)` with `features` `(n, d)` added at `places`: `(b, t)` bool or flat indices `(n,)`."""
    flat = places.flatten().nonzero()[:, 0] if places.dtype == torch.bool else places
    return hidden.flatten(0, 1).index_add(0, flat, features.to(hidden.dtype)).view(hidden.shape)


def _runs(name: str) -> bool:
    from transformers import utils

    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] not in FLASH[name]:
        return False
    return bool(getattr(utils, f"is_flash_attn_{name[-1]}_available")())
