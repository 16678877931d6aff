"""What the server of `processes` imports before it forks: nearly all that a run does."""

# ruff: noqa: F401
import lightning.pytorch
import streaming
import torch
import transformers.models.qwen3_vl.modeling_qwen3_vl
import transformers.models.qwen3_vl.processing_qwen3_vl
import transformers.models.qwen3_vl.video_processing_qwen3_vl
import transformers.optimization

import framework.data.sources.world
import framework.training.evaluators.open_loop
import framework.training.rl.engine.embedded
import framework.training.tasks.train
