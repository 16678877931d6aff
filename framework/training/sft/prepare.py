"""What the host knows of a supervised step before it is moved: layouts, learned positions and counts.

The step itself then reads nothing from the device that depends on its data, so that the host runs ahead of a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from framework.data.render.collate import without_labels
from framework.model.language_action import LanguageActionModel
from framework.objective.supervised import next_token_positions, supervised_tokens
from framework.scene.batch import MicroBatch
from framework.training.sft.plan_targets import PlanTargets, plan_targets
from framework.training.to_device import to_device


@dataclass(frozen=True, slots=True)
class PreparedMicroBatch:
    """A micro-batch, and what it learns."""

    batch: MicroBatch
    """With its layout, where the model computes rows without padding."""
    sources: Tensor
    """`(n,)` int64: flat indices of the positions whose next token is learned."""
    targets: Tensor
    """`(n,)` int64: those tokens."""
    plans: PlanTargets | None
    """What the model's action head learns, where it has one."""

    @property
    def positions(self) -> Tensor:
        """Flat indices of the positions whose states are needed: `sources`, then the tokens of the plans' prompts."""
        return self.sources if self.plans is None else torch.cat([self.sources, self.plans.prompts.places])


@dataclass(frozen=True, slots=True)
class PreparedStep:
    """The micro-batches of a step."""

    micro_batches: Sequence[PreparedMicroBatch]
    """Those that count, then those that only fill up this rank's number of them."""
    counted: int
    """The number of those that count."""
    counts: tuple[int, int, int, int]
    """Numbers of supervised tokens, tokens, samples, and plans that the action head learns."""

    def to(self, device: torch.device) -> PreparedStep:
        """The step with its tensors on `device` (see `to_device`)."""
        moved = [
            PreparedMicroBatch(
                to_device(micro.batch, device),
                to_device(micro.sources, device),
                to_device(micro.targets, device),
                None if micro.plans is None else micro.plans.to(device),
            )
            for micro in self.micro_batches
        ]
        return replace(self, micro_batches=moved)


def prepare_step(
    model: LanguageActionModel, batch: Sequence[MicroBatch], missing: int, number: int = 0
) -> PreparedStep:
    """Prepare the micro-batches of the step `number`, with `missing` more, which learn nothing, to fill up this rank's
    number of them."""
    idle = [without_labels(min(batch, key=lambda micro: micro["input_ids"].numel()))] * missing if missing else []
    supervised = sum(supervised_tokens(micro["labels"]) for micro in batch)
    tokens = sum(int(micro["attention_mask"].sum()) for micro in batch)
    samples = sum(len(micro["scenes"]) for micro in batch)
    prepared = [_prepare(model, micro, number) for micro in (*batch, *idle)]
    plans = sum(micro.plans.learned for micro in prepared if micro.plans is not None)
    return PreparedStep(prepared, len(batch), (supervised, tokens, samples, plans))


def _prepare(model: LanguageActionModel, micro: MicroBatch, number: int) -> PreparedMicroBatch:
    positions, targets = next_token_positions(micro["labels"])
    plans = None if model.action_head is None else plan_targets(model.action_head, micro, number)
    return PreparedMicroBatch(model.lay_out(micro), positions.flatten().nonzero()[:, 0], targets, plans)
