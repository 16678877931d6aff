"""Which implementation of attention a backbone gets: by what is there."""

from __future__ import annotations

import torch

FLASH = {"flash_attention_3": (9,), "flash_attention_2": (8, 9)}
"""What `transformers` calls the kernels for samples of any length in one row, the better first (Shah et al. 2024, arXiv
2407.08608; Dao 2023, arXiv 2307.08691), and the CUDA capabilities of the GPUs that they are made for: Ampere and Ada 8,
Hopper 9."""


def attention_kernels(wanted: str) -> str:
    """What `transformers` calls the implementation `wanted`: `auto` takes the flash kernels where they can run, else
    torch's own (`sdpa`); `flash` insists on them; anything else is one of its own names.

    The flash kernels compute in bfloat16 alone and cannot share a prompt among answers. On the meta device, where
    nothing is computed, `sdpa` stands for them where they are not there. Raises `ValueError` where they are insisted
    on and cannot run.
    """
    if wanted not in ("auto", "flash"):
        return wanted
    found = next((name for name in FLASH if _runs(name)), None)
    if found is None and wanted == "flash" and torch.get_default_device().type != "meta":
        raise ValueError(
            "model.backbone.attention: flash needs an Ampere, Ada or Hopper GPU and the package flash-attn (or "
            "flash-attn-3); install one, or give sdpa, or auto for whichever is there"
        )
    return found or "sdpa"


def _runs(name: str) -> bool:
    from transformers import utils

    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] not in FLASH[name]:
        return False
    return bool(getattr(utils, f"is_flash_attn_{name[-1]}_available")())
