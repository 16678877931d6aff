"""The tiny language model and both passes over a batch of words."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch import Tensor

from framework.model.backbone import RandomBackbone
from framework.model.language_action import LanguageActionModel
from framework.objective.supervised import CrossEntropy, next_token_positions
from framework.scene.batch import MicroBatch
from framework.training.planner.trace import Allocations

PRESET = Path(__file__).resolve().parents[2] / "conf" / "model" / "backbone" / "tiny.yaml"


@dataclass
class Passes:
    """The loss, the gradients by name, and the bytes held between the passes in addition to model and batch."""

    loss: float
    gradients: dict[str, Tensor]
    kept: int


def build() -> LanguageActionModel:
    """The recipes' tiny model without sensors, the same at every call."""
    torch.manual_seed(0)
    return LanguageActionModel(RandomBackbone(yaml.safe_load(PRESET.read_text())["architecture"])).train()


def words(rows: int = 4, length: int = 64) -> MicroBatch:
    """Random words, all of them learned."""
    ids = torch.randint(0, 1000, (rows, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    return MicroBatch(input_ids=ids, attention_mask=mask, mm_token_type_ids=ids * 0, labels=ids, sensors={}, scenes=[])


def passes(
    prepare: Callable[[LanguageActionModel], object],
    around: AbstractContextManager[object] | None = None,
    counted: bool = True,
) -> Passes:
    """Both passes through a fresh model that was prepared, the forward one inside of `around`. Bytes are not `counted`
    where blocks are to be compiled: torch compiles nothing that is watched.
    """
    model, batch = build(), words()
    prepare(model)
    known = [*model.parameters(), *model.buffers(), batch["input_ids"], batch["attention_mask"], batch["labels"]]
    allocations = Allocations(known)
    with allocations if counted else nullcontext():
        with around or nullcontext():
            positions, targets = next_token_positions(batch["labels"])
            loss = CrossEntropy()(model(batch, positions), model.head, targets)
        kept = allocations.current
        loss.total.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return Passes(loss.total.item(), gradients, kept)
