"""A model on its mesh: no rank ever holds all of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from framework.model.flops import count_encoders
from framework.model.language_action import LanguageActionModel
from framework.model.tensor_plan import TENSOR_PLAN, refuse_adapters
from framework.parallel.parallelism import Parallelism, world_size


def build_model(
    build: Callable[..., LanguageActionModel], special_tokens: Sequence[str], parallel: Parallelism
) -> LanguageActionModel:
    """The model that `build` makes, in its format, cut over the ranks, with room for this rank's share of the backbone.

    What fills it is the caller's: the backbone's own weights (`fill`), or a checkpoint's. Raises `ValueError` for
    adapters under tensor parallelism.
    """
    model = build(special_tokens=special_tokens, initialize=False)
    if parallel.mesh.tensor not in ("auto", 1):
        refuse_adapters(model)
    count_encoders(model.encoders)  # which is possible while they are whole
    parallel.prepare(model, model.blocks())
    parallel.start()
    parallel.distribute(model, [*model.encoders.values(), *model.blocks()], TENSOR_PLAN)
    model.materialize(parallel.device if world_size() > 1 else torch.device("cpu"))
    return model
