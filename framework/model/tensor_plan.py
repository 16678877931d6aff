"""How Qwen3-VL and the sensor encoders are cut by tensor parallelism: data, read by the parallel room.

The language model's projections are cut in pairs, attention by heads; the vision tower's attention stays whole, because
its queries, keys and values are one fused layer, whose columns are not in the order of heads. Embeddings, norms and
encoders are whole: they are small, or read by every rank.
"""

from __future__ import annotations

from typing import Literal

LAYER = "backbone.model.language_model.layers.*"
VISION = "backbone.model.visual"

TENSOR_PLAN: dict[str, Literal["columns", "rows", "heads", "whole"]] = {
    **{f"{LAYER}.self_attn.{name}": "columns" for name in ("q_proj", "k_proj", "v_proj")},
    f"{LAYER}.self_attn.o_proj": "rows",
    **{f"{LAYER}.self_attn.{name}": "heads" for name in ("q_norm", "k_norm")},
    **{f"{LAYER}.mlp.{name}": "columns" for name in ("gate_proj", "up_proj")},
    f"{LAYER}.mlp.down_proj": "rows",
    f"{LAYER}.*layernorm": "whole",
    "backbone.model.language_model.embed_tokens": "whole",
    "backbone.model.language_model.norm": "whole",
    "backbone.lm_head": "whole",
    f"{VISION}.blocks.*.mlp.linear_fc1": "columns",
    f"{VISION}.blocks.*.mlp.linear_fc2": "rows",
    f"{VISION}.*": "whole",
    "encoders.*": "whole",
}
