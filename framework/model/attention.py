"""The choice of a backbone's attention implementation by what is installed and can run."""

from __future__ import annotations

import torch

FLASH = {"flash_attention_3": (9,), "flash_attention_2": (8, 9)}
"""Names in `transformers` of the kernels for samples of any length in one row, best first (Shah et al. 2024, arXiv
2407.08608; Dao 2023, arXiv 2307.08691), and the major CUDA capabilities that they support: 8 is Ampere and Ada, 9 is
Hopper."""


def attention_kernels(wanted: str) -> str:
    """The name in `transformers` of the implementation `wanted`.

    `auto` selects the flash kernels where they can run, else torch's own (`sdpa`); `flash` requires them; anything else
    is a name of `transformers` already.

    The flash kernels compute in bfloat16 only and cannot share a prompt among answers. On the meta device, where
    nothing is computed, `sdpa` replaces flash kernels that are missing. Elsewhere raises `ValueError` where `flash` is
    required and cannot run.
    """
    if wanted not in ("auto", "flash"):
        return wanted
    kernels = next((name for name in FLASH if _runs(name)), None)
    if kernels is None and wanted == "flash" and torch.get_default_device().type != "meta":
        raise ValueError(
            "model.backbone.attention: flash needs an Ampere, Ada or Hopper GPU and the package flash-attn (or "
            "flash-attn-3); install one, or give sdpa, or auto for whichever is there"
        )
    return kernels or "sdpa"


def _runs(name: str) -> bool:
    from transformers import utils

    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] not in FLASH[name]:
        return False
    return bool(getattr(utils, f"is_flash_attn_{name[-1]}_available")())
