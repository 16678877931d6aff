"""What the server of `processes` imports before it forks: nearly all that a run does."""

# ruff: noqa: F401
import lightning.pytorch
import torch
import transformers.models.qwen3_vl.modeling_qwen3_vl
import transformers.models.qwen3_vl.processing_qwen3_vl
import transformers.models.qwen3_vl.video_processing_qwen3_vl
import transformers.optimization

import framework.data.world_shards
import framework.training.engine.embedded
import framework.training.simulation
import framework.training.train
