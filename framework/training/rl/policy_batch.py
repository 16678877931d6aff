"""A micro-batch of rollouts as the trainer scores it: prompts with their answers, and tensors of what was sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from framework.data.stream.loader import StepLoader
from framework.model.flow_head import FlowHead
from framework.model.language_action import LanguageActionModel
from framework.objective.advantages import GroupDecoupled
from framework.objective.policy import PolicyObjective, SampledTokens
from framework.scene.batch import MicroBatch
from framework.training.rl.actions import Actions, flow_actions, token_actions
from framework.training.rl.rollout import RolloutGroup
from framework.training.to_device import to_device


@dataclass(frozen=True, slots=True)
class PolicyBatch:
    """`g` groups, a row each, of `s` answers with `n` sampled tokens, in the rows' order. Of plans that an action head
    drew, each step of the flow counts as a token.
    """

    batch: MicroBatch
    """Rows of a prompt and all its answers, which share it as a prefix; of prompts alone where a head drew plans."""
    actions: Actions
    """The sampled tokens, or the steps of the flow."""
    samples: Tensor
    """`(n,)` int64 in [0, s): the answer that each token belongs to."""
    engine_logprobs: Tensor
    """`(n,)` float32: the engine's log-probabilities of the tokens."""
    groups: Tensor
    """`(s,)` int64 in [0, g): the group of each answer."""
    rewards: Tensor
    """`(s,)` float32."""
    versions: Tensor
    """`(s,)` int64: version of the weights that sampled the answer."""
    idle: bool = False
    """Whether the batch trains nothing: it is computed so that all ranks take part in the collectives."""
    old_logprobs: Tensor | None = None
    """`(n,)` float32: log-probabilities before the batch's first update, on the device that computed them; None where
    there is only one update.
    """
    reference_logprobs: Tensor | None = None
    """`(n,)` float32: the reference model's log-probabilities, on the device that computed them."""
    advantages: Tensor | None = None
    """`(s,)` float32, see `with_advantages`."""

    @property
    def positions(self) -> int:
        """Positions of the rows that are not padding."""
        return int(self.batch["attention_mask"].sum())

    def to(self, device: torch.device) -> PolicyBatch:
        """Returns the batch on `device`."""
        tensors = {
            field.name: value.to(device, non_blocking=True)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        moved = {"batch": to_device(self.batch, device), "actions": self.actions.to(device)}
        return replace(self, **moved, **tensors)  # type: ignore[arg-type]

    def laid_out(self, model: LanguageActionModel) -> PolicyBatch:
        """Returns the batch, on the CPU, with the layout of `model`, which then serves every pass."""
        return replace(self, batch=model.lay_out(self.batch))

    def with_advantages(self, objective: PolicyObjective, logprobs: Tensor | None) -> PolicyBatch:
        """Returns the batch with its advantages, unless it has them. `logprobs` `(n,)` of the policy are needed where
        the objective takes a divergence off the rewards.
        """
        if self.advantages is not None:
            return self
        rewards, kl = self.rewards, objective.kl
        if kl is not None and kl.place == "reward" and objective.needs_reference:
            assert logprobs is not None
            assert self.reference_logprobs is not None
            # Rewards are on the host: this waits for the device.
            rewards = kl.penalize(rewards, logprobs.cpu(), self.reference_logprobs.cpu(), self.samples)
        assert not isinstance(objective.advantages, GroupDecoupled)  # `Credit` has given them
        return replace(self, advantages=objective.advantages(rewards, self.groups))

    def sampled_tokens(self, version: int) -> SampledTokens:
        """Returns the objective's arguments, where `version` are the weights before the batch's first update."""
        assert self.advantages is not None
        stale = ~self._is_of(version)
        return SampledTokens(
            self.samples, self.advantages, self.old_logprobs, self.engine_logprobs, self.reference_logprobs, stale
        )

    def logprob_gap(self, logprobs: Tensor, version: int) -> Tensor:
        """Returns the sum of |log pi_train - log pi_engine| over tokens that weights `version` sampled, and their
        number, `(2,)`; `logprobs` `(n,)` are the policy's present ones.

        Tokens with a non-finite `logprobs` are left out: there the policy is at fault, not the engine, and the step is
        dropped for its gradient.
        """
        compared = self._is_of(version) & logprobs.isfinite()
        gaps = (logprobs - self.engine_logprobs).abs().where(compared, 0.0)
        return torch.stack([gaps.sum(), compared.sum().to(logprobs.dtype)])

    def _is_of(self, version: int) -> Tensor:
        """Whether weights `version` sampled each token, `(n,)` bool."""
        return (self.versions == version)[self.samples]


def policy_batch(
    groups: Sequence[RolloutGroup],
    loader: StepLoader,
    vocabulary: int,
    idle: bool = False,
    advantages: Sequence[Tensor] | None = None,
    head: FlowHead | None = None,
) -> PolicyBatch:
    """Returns the micro-batch of `groups`, on the CPU, for a model with a `vocabulary` of so many tokens, or of plans
    that its action `head` drew.

    `advantages` `(g,)` of each group's answers are given where they need more than the batch: turns of episodes are
    compared with turns that other batches hold. Raises `ValueError` when a sampled token is banned.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    sizes = torch.tensor([len(group.rollouts) for group in groups])
    lengths = torch.tensor([len(rollout.logprobs) for rollout in rollouts])
    actions: Actions
    if head is None:
        batch, actions = token_actions(groups, loader, vocabulary)
    else:
        batch, actions = flow_actions(groups, loader.renderer.special_ids, head)
    return PolicyBatch(
        batch=batch,
        actions=actions,
        samples=torch.repeat_interleave(torch.arange(len(rollouts)), lengths),
        engine_logprobs=torch.tensor([value for rollout in rollouts for value in rollout.logprobs]),
        groups=torch.repeat_interleave(torch.arange(len(groups)), sizes),
        rewards=torch.cat([group.rewards for group in groups]),
        versions=torch.tensor([rollout.version for rollout in rollouts]),
        idle=idle,
        advantages=None if advantages is None else torch.cat(list(advantages)),
    )
