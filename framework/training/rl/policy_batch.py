"""Answers as the trainer scores them: a micro-batch, and everything about its sampled tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from framework.data.render.collate import collate_shared_prefix
from framework.data.stream.loader import StepLoader
from framework.model.codecs.grammar import compute_banned_mask
from framework.model.shared_prefix import answer_token_positions
from framework.objective.policy import PolicyObjective, SampledTokens
from framework.scene.batch import MicroBatch
from framework.training.rl.collector import Group
from framework.training.rl.sampler import drive_task
from framework.training.to_device import to_device


@dataclass(frozen=True, slots=True)
class Scorable:
    """`g` groups, a row each: the prompt and all `s` answers, which have `n` tokens.

    Of the tokens, in rows' order: `taken` `(n,)`, the tokens themselves; `before` `(n,)`, flat indices of the positions
    that predict them; `refused` `(n, words)` int32, what could not be drawn, a bit for each token of the vocabulary;
    `samples` `(n,)` int64 in [0, s), whose they are; log-probabilities `(n,)` of the `engine`, of the policy before the
    batch's first update (`old`) and of the `reference`. Of the answers: `groups` `(s,)` int64 in [0, g), `rewards`
    `(s,)`, `versions` `(s,)` of the weights that drew them, `advantages` `(s,)`. An `idle` one is computed beside the
    other ranks' and trains nothing.
    """

    batch: MicroBatch
    taken: Tensor
    before: Tensor
    refused: Tensor
    samples: Tensor
    engine: Tensor
    groups: Tensor
    rewards: Tensor
    versions: Tensor
    idle: bool = False
    old: Tensor | None = None
    reference: Tensor | None = None
    advantages: Tensor | None = None

    @property
    def positions(self) -> int:
        """All positions that hold something."""
        return int(self.batch["attention_mask"].sum())

    def to(self, device: torch.device) -> Scorable:
        """The same on `device`."""
        tensors = {
            field.name: value.to(device, non_blocking=True)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, batch=to_device(self.batch, device), **tensors)  # type: ignore[arg-type]

    def judged(self, objective: PolicyObjective, logprobs: Tensor | None) -> Scorable:
        """With advantages; `logprobs` `(n,)` of the policy, on the same device, are used where a divergence is taken
        off the rewards.
        """
        rewards, kl = self.rewards, objective.kl
        if kl is not None and kl.place == "reward" and objective.needs_reference:
            assert logprobs is not None
            assert self.reference is not None
            rewards = kl.penalize(rewards, logprobs, self.reference, self.samples)
        return replace(self, advantages=objective.advantages(rewards, self.groups))

    def sampled(self, version: int) -> SampledTokens:
        """What the objective takes where weights `version` are those of before the batch's first update."""
        assert self.advantages is not None
        stale = ~self._are_of(version)
        return SampledTokens(self.samples, self.advantages, self.old, self.engine, self.reference, stale)

    def gap(self, logprobs: Tensor, version: int) -> Tensor:
        """How far the engine's log-probabilities are from the policy's present `logprobs` `(n,)`, over answers that
        weights `version` drew: the sum of differences and their number, `(2,)`. Where the policy's own are not finite
        it is not the engine that is to blame, and the step is dropped for its gradient.
        """
        same = self._are_of(version) & logprobs.isfinite()
        return torch.stack([(logprobs - self.engine).abs()[same].sum(), same.sum().to(logprobs.dtype)])

    def _are_of(self, version: int) -> Tensor:
        """The tokens that weights `version` drew, `(n,)` bool."""
        return (self.versions == version)[self.samples]


def scorable(loader: StepLoader, vocabulary: int, groups: Sequence[Group], idle: bool = False) -> Scorable:
    """The micro-batch of `groups`, on the CPU."""
    answers = [answer for group in groups for answer in group.answers]
    sizes = torch.tensor([len(group.answers) for group in groups])
    lengths = torch.tensor([len(answer.tokens) for answer in answers])
    forms = [drive_task(loader, group.prompt).grammar for group in groups for _ in group.answers]
    tokens = [answer.tokens for answer in answers]
    token_ids = [[answer.tokens for answer in group.answers] for group in groups]
    batch = collate_shared_prefix([group.prompt for group in groups], token_ids, loader.renderer.special_ids)
    places, before = answer_token_positions(batch["shared_prefix"], batch["attention_mask"])
    return Scorable(
        batch=batch,
        taken=batch["input_ids"].flatten()[places],
        before=before,
        refused=compute_banned_mask(loader.tokenizer, forms, tokens, vocabulary),
        samples=torch.repeat_interleave(torch.arange(len(answers)), lengths),
        engine=torch.tensor([value for answer in answers for value in answer.logprobs]),
        groups=torch.repeat_interleave(torch.arange(len(groups)), sizes),
        rewards=torch.cat([group.rewards for group in groups]),
        versions=torch.tensor([answer.version for answer in answers]),
        idle=idle,
    )
