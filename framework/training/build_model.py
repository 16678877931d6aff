"""Builds a model on its mesh, so that no rank ever holds all of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from framework.model.flops import count_encoders
from framework.model.language_action import LanguageActionModel
from framework.model.row_layout import SHARED_GRAIN
from framework.model.tensor_plan import refuse_adapters
from framework.parallel.parallelism import Parallelism, world_size


def build_model(
    build: Callable[..., LanguageActionModel], special_tokens: Sequence[str], parallel: Parallelism
) -> LanguageActionModel:
    """Build a model in the run's precision and shard it over the ranks (collective).

    Args:
        build: Builds the model, called with `special_tokens` and `initialize=False`.
        special_tokens: Tokens that the data adds to the tokenizer.
        parallel: Mesh, precision, recomputation and compilation.

    Returns:
        The model with memory for this rank's shards. Their values are undefined until `init_weights` or a checkpoint
        sets them. On one rank the model lies on the CPU.

    Raises:
        ValueError: With adapters under tensor parallelism.
    """
    model = build(special_tokens=special_tokens, initialize=False)
    if parallel.mesh.tensor not in ("auto", 1):
        refuse_adapters(model)
    count_encoders(model.encoders)  # before they are sharded
    parallel.prepare(model, model.blocks())
    parallel.start()
    parallel.distribute(model, [*model.encoders.values(), *model.blocks()], model.family.tensor_plan)
    if parallel.tensor_ranks > 1:
        model.row_grain = SHARED_GRAIN
    model.materialize(parallel.device if world_size() > 1 else torch.device("cpu"))
    return model
