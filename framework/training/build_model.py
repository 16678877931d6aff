"""A model on its mesh: no rank ever holds all of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from framework.model.flops import count_encoders
from framework.model.language_action import LanguageActionModel
from framework.model.tensor_plan import TENSOR_PLAN, refuse_adapters
from framework.parallel.placement import Placement, world_size


def placed(
    build: Callable[..., LanguageActionModel], special_tokens: Sequence[str], placement: Placement
) -> LanguageActionModel:
    """The model that `build` makes, in its format, cut over the ranks, with room for this rank's share of the backbone.

    What fills it is the caller's: the backbone's own weights (`fill`), or a checkpoint's. Raises `ValueError` for
    adapters under tensor parallelism.
    """
    model = build(special_tokens=special_tokens, filled=False)
    if placement.mesh.tensor not in ("auto", 1):
        refuse_adapters(model)
    count_encoders(model.encoders)  # which is possible while they are whole
    placement.prepare(model, model.blocks())
    placement.start()
    placement.distribute(model, [*model.encoders.values(), *model.blocks()], TENSOR_PLAN)
    model.allocate(placement.device if world_size() > 1 else torch.device("cpu"))
    return model
