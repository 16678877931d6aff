"""The tensor-parallel plan of Qwen3-VL and the sensor encoders, as data for `framework.parallel.tensor_plan`.

Attention is sharded by heads, MLPs in pairs of columns and rows, embeddings and head by the vocabulary. Between these
layers each rank has a contiguous range of the language model's positions (sequence parallelism). The vision tower's
norms and inputs and the encoders are replicated: they are small, or every rank needs them.
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from framework.model.lora import adapted_layers

LANGUAGE = "backbone.model.language_model"
LAYER = f"{LANGUAGE}.layers.*"
VISION = "backbone.model.visual"

TENSOR_PLAN: dict[
    str,
    Literal[
        "columns", "rows", "heads", "fused heads", "head norm", "words", "replicated",
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
    **{f"{VISION}.{name}": "replicated" for name in ("patch_embed.proj", "pos_embed", "blocks.*.norm?", "merger.norm")},
    f"{VISION}.deepstack_merger_list.*.norm": "replicated",
    "encoders.*": "replicated",
}  # fmt: skip


def refuse_adapters(model: nn.Module) -> None:
    """Raise `ValueError` if `model` has low-rank adapters, which the plan does not shard."""
    if adapted_layers(model):
        raise ValueError(
            "parallel.mesh.tensor: tensor parallelism does not shard low-rank adapters; set it to 1, or train without "
            "them (model/adapters=none)"
        )
