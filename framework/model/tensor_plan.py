"""How Qwen3-VL and the sensor encoders are cut by tensor parallelism: data, read by the parallel room.

Attention is cut by heads, other layers in pairs, words by the vocabulary; between them each rank has a run of the
language model's positions. The vision tower's norms and inputs and the encoders are whole: they are small, or read by
every rank.
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from framework.model.lora import adapted

LANGUAGE = "backbone.model.language_model"
LAYER = f"{LANGUAGE}.layers.*"
VISION = "backbone.model.visual"

TENSOR_PLAN: dict[
    str,
    Literal[
        "columns", "rows", "heads", "fused heads", "head norm", "words", "whole",
        "first block", "gathered", "scattered rows", "norm", "last norm", "injections",
    ],
] = {
    LANGUAGE: "injections",
    f"{LANGUAGE}.embed_tokens": "words",
    f"{LANGUAGE}.layers.0": "first block",
    f"{LAYER}.*layernorm": "norm",
    **{f"{LAYER}.{name}": "gathered" for name in ("self_attn", "mlp")},
    **{f"{LAYER}.self_attn.{name}": "heads" for name in ("q_proj", "k_proj", "v_proj")},
    f"{LAYER}.self_attn.o_proj": "scattered rows",
    **{f"{LAYER}.self_attn.{name}": "head norm" for name in ("q_norm", "k_norm")},
    **{f"{LAYER}.mlp.{name}": "columns" for name in ("gate_proj", "up_proj")},
    f"{LAYER}.mlp.down_proj": "scattered rows",
    f"{LANGUAGE}.norm": "last norm",
    "backbone.lm_head": "words",
    f"{VISION}.blocks.*.attn.qkv": "fused heads",
    f"{VISION}.blocks.*.attn.proj": "rows",
    f"{VISION}.*.linear_fc1": "columns",
    f"{VISION}.*.linear_fc2": "rows",
    **{f"{VISION}.{name}": "whole" for name in ("patch_embed.proj", "pos_embed", "blocks.*.norm?", "merger.norm")},
    f"{VISION}.deepstack_merger_list.*.norm": "whole",
    "encoders.*": "whole",
}  # fmt: skip


def refuse_adapters(model: nn.Module) -> None:
    """Raise `ValueError` where `model`, which is to be cut, has low-rank adapters: the plan does not cut them."""
    if adapted(model):
        raise ValueError(
            "parallel.mesh.tensor: low-rank adapters are not cut by tensor parallelism; set it to 1, or train without "
            "them (model/adapters=none)"
        )
