"""The tensor-parallel plans of the families and the sensor encoders, as data for `framework.parallel.tensor_plan`.

Attention is sharded by heads, MLPs in pairs of columns and rows, experts by their number, embeddings and head by the
vocabulary. Between these layers each rank has a contiguous range of the language model's positions (sequence
parallelism). The vision tower's norms and inputs and the encoders are replicated: they are small, or every rank needs
them. So are routers and shared experts, and the layers with a recurrent state, which every rank runs on all positions.
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from framework.model.lora import adapted_layers

LANGUAGE = "backbone.model.language_model"
LAYER = f"{LANGUAGE}.layers.*"
VISION = "backbone.model.visual"

Plan = dict[
    str,
    Literal[
        "columns", "rows", "heads", "fused heads", "head norm", "words", "replicated", "first block", "gathered",
        "scattered rows", "norm", "last norm", "injections", "whole", "experts",
    ],
]  # fmt: skip
"""Cuts by shell pattern of the modules' names; see `framework.parallel.tensor_plan.Cut`."""

COMMON: Plan = {
    f"{LANGUAGE}.embed_tokens": "words",
    f"{LANGUAGE}.layers.0": "first block",
    f"{LAYER}.*layernorm": "norm",
    f"{LAYER}.self_attn": "gathered",
    **{f"{LAYER}.self_attn.{name}": "heads" for name in ("q_proj", "k_proj", "v_proj")},
    f"{LAYER}.self_attn.o_proj": "scattered rows",
    **{f"{LAYER}.self_attn.{name}": "head norm" for name in ("q_norm", "k_norm")},
    f"{LANGUAGE}.norm": "last norm",
    "backbone.lm_head": "words",
    f"{VISION}.blocks.*.attn.qkv": "fused heads",
    f"{VISION}.blocks.*.attn.proj": "rows",
    f"{VISION}.*.linear_fc1": "columns",
    f"{VISION}.*.linear_fc2": "rows",
    **{f"{VISION}.{name}": "replicated" for name in ("patch_embed.proj", "pos_embed", "blocks.*.norm?", "merger.norm")},
    "encoders.*": "replicated",
}
"""What all families have."""
INJECTIONS: Plan = {LANGUAGE: "injections", f"{VISION}.deepstack_merger_list.*.norm": "replicated"}
"""Features of several depths of the vision tower, which Qwen3-VL adds to its first blocks."""
MLP: Plan = {
    f"{LAYER}.mlp": "gathered",
    **{f"{LAYER}.mlp.{name}": "columns" for name in ("gate_proj", "up_proj")},
    f"{LAYER}.mlp.down_proj": "scattered rows",
}
"""A dense MLP."""
EXPERTS: Plan = {
    f"{LAYER}.mlp": "whole",
    f"{LAYER}.mlp.experts": "experts",
    f"{LAYER}.mlp.gate": "replicated",
}
"""Experts and their router."""
SHARED_EXPERT: Plan = {f"{LAYER}.mlp.{name}": "replicated" for name in ("shared_expert.*", "shared_expert_gate")}
"""An expert that reads every token."""
RECURRENT: Plan = {
    f"{LAYER}.linear_attn": "whole",
    f"{LAYER}.linear_attn.*": "replicated",
}
"""Gated DeltaNet: its recurrence runs on whole rows."""

QWEN3_VL = INJECTIONS | COMMON | MLP
QWEN3_VL_MOE = INJECTIONS | COMMON | EXPERTS
QWEN3_5 = COMMON | MLP | RECURRENT
QWEN3_5_MOE = COMMON | EXPERTS | SHARED_EXPERT | RECURRENT


def refuse_adapters(model: nn.Module) -> None:
    """Raise `ValueError` if `model` has low-rank adapters, which the plan does not shard."""
    if adapted_layers(model):
        raise ValueError(
            "parallel.mesh.tensor: tensor parallelism does not shard low-rank adapters; set it to 1, or train without "
            "them (model/adapters=none)"
        )
