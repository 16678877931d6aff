"""What the action head learns of a micro-batch: prompts, the expert's controls, noise and times of the flow."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from framework.model.codecs.control_tokens import expert_controls
from framework.model.flow_head import FlowHead, Prompts
from framework.model.flow_matching import training_times
from framework.model.plan import seed_of
from framework.scene.batch import IGNORE_INDEX, MicroBatch
from framework.training.to_device import to_device


@dataclass(frozen=True, slots=True)
class PlanTargets:
    """The plans of a micro-batch."""

    prompts: Prompts
    """Their prompts."""
    actions: Tensor
    """`(n, steps, 2)`, as the head has them."""
    noise: Tensor
    """Standard normal numbers of the same shape."""
    times: Tensor
    """Times of the flow, `(n,)`."""
    weights: Tensor
    """`(n,)`: 1 for a plan that is learned. Without any there is one of weight 0, so that the head's parameters have
    gradients on every rank."""
    learned: int
    """Number of the plans that are learned."""

    def to(self, device: torch.device) -> PlanTargets:
        """The same on `device`."""
        return PlanTargets(
            self.prompts.to(device),
            to_device(self.actions, device),
            to_device(self.noise, device),
            to_device(self.times, device),
            to_device(self.weights, device),
            self.learned,
        )

    def loss(self, head: FlowHead, states: Tensor) -> Tensor:
        """The head's loss summed over the plans, from the `states` `(k, hidden)` of the prompts' tokens."""
        memory = head.memory(states, self.prompts.segments)
        return (head.loss(memory, self.actions, self.noise, self.times) * self.weights).sum()


def plan_targets(head: FlowHead, batch: MicroBatch, step: int) -> PlanTargets:
    """The plans of `batch`, which is on the CPU, whose tasks are the head's.

    Noise and times follow from a sample's id and the `step` alone: neither from how a step is cut up nor from what an
    earlier attempt drew. Raises `SceneError` for a scene whose future has another rate or horizon than the head's.
    """
    drawn, prompts = [], list[Tensor]()
    for number, places in enumerate(_samples(batch)):
        learned = (batch["labels"].flatten()[places] != IGNORE_INDEX).nonzero()[:, 0]
        if batch["tasks"][number] in head.tasks and len(learned):
            prompts.append(places[: int(learned[0])])
            wanted = expert_controls(batch["scenes"][number], head.steps, head.rate_hz, head.limits)
            own = torch.Generator().manual_seed(seed_of(f"{batch['sample_ids'][number]}/{step}"))
            noise, time = torch.randn(head.steps, 2, generator=own), torch.rand((), generator=own)
            drawn.append((head.actions(torch.from_numpy(wanted)).float(), noise, training_times(time)))
    if not drawn:
        nothing = torch.zeros(1, head.steps, 2)
        first = batch["attention_mask"].flatten().nonzero()[:1, 0]
        return PlanTargets(Prompts.of([first], head.steps), nothing, nothing, torch.ones(1), torch.zeros(1), 0)
    actions, noise, times = (torch.stack(each) for each in zip(*drawn, strict=True))
    return PlanTargets(Prompts.of(prompts, head.steps), actions, noise, times, torch.ones(len(drawn)), len(drawn))


def _samples(batch: MicroBatch) -> list[Tensor]:
    """The flat indices of each sample's tokens, in the order of the micro-batch's scenes."""
    mask = batch["attention_mask"]
    numbers = batch.get("segments", mask)
    length = mask.shape[1]
    return [
        (row == number).nonzero()[:, 0] + place * length
        for place, row in enumerate(numbers)
        for number in range(1, int(row.max()) + 1)
    ]
