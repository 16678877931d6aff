"""Floating-point operations of a Qwen3-VL forward pass, counted from the architecture's numbers.

A multiply-add counts as two. Causal attention counts half of the score matrix. Norms, activations and embeddings'
look-ups are left out: together below one per cent. The backward pass takes twice the forward; recomputed blocks take
another forward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ForwardFlops:
    """FLOPs of one forward pass by part."""

    language_dense: float
    language_attention: float
    vision_dense: float
    vision_attention: float
    head: float

    @property
    def blocks(self) -> float:
        """What activation checkpointing recomputes."""
        return self.language_dense + self.language_attention + self.vision_dense + self.vision_attention

    @property
    def total(self) -> float:
        """All of the forward pass."""
        return self.blocks + self.head


def forward_flops(config: Any, tokens: float, patches: float, supervised: float, vocabulary: int) -> ForwardFlops:
    """FLOPs of one sample: `tokens` positions, `patches` image patches, `supervised` positions that need logits.

    `config` is the backbone's Qwen3VLConfig.
    """
    text, vision = config.text_config, config.vision_config
    hidden, heads = text.hidden_size, text.num_attention_heads * text.head_dim
    keys = text.num_key_value_heads * text.head_dim
    layer = 2 * hidden * heads + 2 * hidden * keys + 3 * hidden * text.intermediate_size
    layers = text.num_hidden_layers
    width, merged = vision.hidden_size, vision.spatial_merge_size**2
    block = 4 * width * width + 2 * width * vision.intermediate_size
    embedding = 3 * vision.temporal_patch_size * vision.patch_size**2 * width
    merger = (width * merged) ** 2 + width * merged * vision.out_hidden_size
    mergers = 1 + len(vision.deepstack_visual_indexes)
    return ForwardFlops(
        language_dense=2.0 * layers * layer * tokens,
        language_attention=2.0 * layers * heads * tokens * tokens,
        vision_dense=2.0 * patches * (vision.depth * block + embedding + mergers * merger / merged),
        vision_attention=4.0 * vision.depth * width * patches * patches,
        head=2.0 * hidden * vocabulary * supervised,
    )
