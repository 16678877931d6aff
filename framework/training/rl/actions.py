"""What a policy chose in its answers, and how the trainer scores it: tokens, or the steps of an action head's flow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from framework.data.render.collate import SpecialIds, collate, collate_shared_prefix
from framework.data.stream.loader import StepLoader
from framework.model.codecs.grammar import compute_banned_mask
from framework.model.flow_head import FlowHead, Prompts
from framework.model.language_action import LanguageActionModel
from framework.model.shared_prefix import answer_token_positions
from framework.objective.bitmask import bitmask_contains
from framework.objective.policy import PolicyObjective
from framework.objective.token_logprobs import TokenScores
from framework.scene.batch import MicroBatch
from framework.training.rl.rollout import RolloutGroup


class Actions(Protocol):
    """The `n` choices of a micro-batch, answer after answer, of which the objective sees log-probabilities alone."""

    def score(self, model: LanguageActionModel, batch: MicroBatch, objective: PolicyObjective) -> TokenScores:
        """Scores each choice under the present weights, `(n,)`."""
        ...

    def to(self, device: torch.device) -> Actions:
        """Returns the choices on `device`."""
        ...


@dataclass(frozen=True, slots=True)
class TokenActions:
    """`n` sampled tokens."""

    target_ids: Tensor
    """`(n,)` int64: the tokens."""
    source_positions: Tensor
    """`(n,)` int64: flat indices into the rows of the positions that predict the tokens."""
    banned_mask: Tensor
    """`(n, words)` int32: the tokens that could not be sampled, one bit for each token of the vocabulary."""

    def score(self, model: LanguageActionModel, batch: MicroBatch, objective: PolicyObjective) -> TokenScores:
        """See `Actions`."""
        hidden = model(batch, self.source_positions)
        return objective.score(hidden, model.head, self.target_ids, self.banned_mask)

    def to(self, device: torch.device) -> TokenActions:
        """See `Actions`."""
        values = (self.target_ids, self.source_positions, self.banned_mask)
        return TokenActions(*(value.to(device, non_blocking=True) for value in values))


@dataclass(frozen=True, slots=True)
class FlowActions:
    """The steps of the flow by which an action head drew `s` plans, `n = s * flow_steps` choices (Flow-GRPO: Liu et al.
    2025, arXiv 2505.05470). A step is one choice with a density in all its dimensions.
    """

    prompts: Prompts
    """The prompts of the plans."""
    states: Tensor
    """`(s, flow_steps + 1, steps, 2)` float32, see `framework.model.flow_head.Paths`."""

    def score(self, model: LanguageActionModel, batch: MicroBatch, objective: PolicyObjective) -> TokenScores:
        """See `Actions`. Entropies are those of the noise, which no weight changes."""
        head = model.action_head
        assert head is not None
        memory = head.memory(model(batch, self.prompts.places), self.prompts.segments)
        logprobs = head.path_logprobs(memory, self.states)
        return TokenScores(logprobs.flatten(), logprobs.new_tensor(head.path_entropies()).repeat(len(self.states)))

    def to(self, device: torch.device) -> FlowActions:
        """See `Actions`."""
        return FlowActions(self.prompts.to(device), self.states.to(device, non_blocking=True))


def token_actions(
    groups: Sequence[RolloutGroup], loader: StepLoader, vocabulary: int
) -> tuple[MicroBatch, TokenActions]:
    """Returns the rows of `groups`, each a prompt that all its answers share as a prefix, with the tokens of these
    answers. Raises `ValueError` when one is banned.
    """
    grammars = [group.prompt.task.grammar for group in groups for _ in group.rollouts]
    answers = [[rollout.tokens for rollout in group.rollouts] for group in groups]
    batch = collate_shared_prefix([group.prompt.sample for group in groups], answers, loader.renderer.special_ids)
    token_positions, source_positions = answer_token_positions(batch["shared_prefix"], batch["attention_mask"])
    target_ids = batch["input_ids"].flatten()[token_positions]
    tokens = [rollout.tokens for group in groups for rollout in group.rollouts]
    banned_mask = compute_banned_mask(loader.tokenizer, grammars, tokens, vocabulary)
    check_sampled(target_ids, banned_mask)
    return batch, TokenActions(target_ids, source_positions, banned_mask)


def flow_actions(groups: Sequence[RolloutGroup], ids: SpecialIds, head: FlowHead) -> tuple[MicroBatch, FlowActions]:
    """Returns the prompts of `groups`, a row each, with the flow's steps to all their plans, which `head` drew.

    Raises `ValueError` for a plan without the path that led to it: all later ones would be scored as others.
    """
    batch = collate([group.prompt.sample for group in groups], ids)
    length = batch["input_ids"].shape[1]
    places = [torch.arange(group.prompt.length) + row * length for row, group in enumerate(groups)]
    plans = [head.flow_steps * len(group.rollouts) for group in groups]
    paths = [rollout.path.states for group in groups for rollout in group.rollouts if rollout.path is not None]
    if len(paths) != sum(len(group.rollouts) for group in groups):
        raise ValueError("rollouts: a plan of the action head has no path; sample all of a step's plans by the head")
    states = torch.tensor(paths).view(-1, head.flow_steps + 1, head.steps, 2)
    return batch, FlowActions(Prompts.of(places, head.steps, plans), states)


def check_sampled(target_ids: Tensor, banned_mask: Tensor) -> None:
    """Raises `ValueError` when one of the sampled tokens `(n,)` is banned by its mask of `banned_mask` `(n, words)`."""
    wrong = bitmask_contains(banned_mask, target_ids)
    if wrong.any():
        raise ValueError(
            f"tokens {target_ids[wrong].unique().tolist()} were sampled and are banned: ban the same tokens in the "
            "engine and in the objective"
        )
