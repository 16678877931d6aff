"""A sharded softmax equals torch's: values, gradients, bans and ties, with ranks as threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical

from framework.objective.vocabulary import SoftmaxStats, VocabShard, local_logits, softmax_stats

COUNT, VOCABULARY = 9, 12
TARGETS = torch.tensor([0, 3, 11, 6, 5, 5, 1, 2, 8])


@dataclass
class Table:
    """Where threads that stand for ranks lay down what they reduce."""

    ranks: int
    values: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.ranks, timeout=20)

    def reduced(self, rank: int, value: Tensor, how: Callable[[Tensor], Tensor]) -> Tensor:
        self.values[rank] = value
        self.barrier.wait()
        result = how(torch.stack([self.values[other] for other in range(self.ranks)]))
        self.barrier.wait()
        return result


@dataclass(frozen=True)
class ThreadShard(VocabShard):
    table: Table = field(default_factory=lambda: Table(1))

    def all_sum(self, values: Tensor) -> Tensor:
        return self.table.reduced(self.start, values, lambda all_of_them: all_of_them.sum(dim=0))

    def all_max(self, values: Tensor) -> Tensor:
        return self.table.reduced(self.start, values, lambda all_of_them: all_of_them.amax(dim=0))


class Ranks(Table):
    """A table at which each rank sits at the first of its columns."""

    def reduced(self, rank: int, value: Tensor, how: Callable[[Tensor], Tensor]) -> Tensor:
        return super().reduced(rank * self.ranks // VOCABULARY, value, how)


def in_shares(logits: Tensor, ranks: int, weights: tuple[float, float, float]) -> tuple[list[SoftmaxStats], Tensor]:
    """What every rank finds, and the gradient of the weighted sum of logprobs, entropies and means, put together."""
    table, columns = Ranks(ranks), VOCABULARY // ranks

    def one(rank: int) -> tuple[SoftmaxStats, Tensor]:
        share = ThreadShard(rank * columns, (rank + 1) * columns, VOCABULARY, table=table)
        mine = logits.detach()[:, share.start : share.stop].clone().requires_grad_()
        found = softmax_stats(mine, TARGETS, share, entropy=True, mean=weights[2] != 0)
        (gradient,) = torch.autograd.grad(weighted(found.logprobs, found.entropies, found.mean, weights), mine)
        return found, gradient

    with ThreadPoolExecutor(ranks) as pool:
        found, gradients = zip(*pool.map(one, range(ranks)), strict=True)
    return list(found), torch.cat(gradients, dim=-1)


def weighted(logprobs: Tensor, entropies: Tensor, mean: Tensor, weights: tuple[float, float, float]) -> Tensor:
    slope = torch.linspace(-1, 2, COUNT, dtype=logprobs.dtype)
    total = (slope * (weights[0] * logprobs + weights[1] * entropies)).sum()
    return total + weights[2] * (slope * mean).sum() if weights[2] else total


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("weights", [(1.0, 0.0, 0.0), (0.0, 3.0, 0.0), (0.9, 0.0, 0.1), (1.0, 0.5, 0.2)])
def test_every_rank_finds_torchs_own_and_the_gradient_of_its_columns(
    ranks: int, weights: tuple[float, float, float]
) -> None:
    logits = 3 * torch.randn(COUNT, VOCABULARY, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    logits.requires_grad_()
    every, entropies = logits.log_softmax(dim=-1), Categorical(logits=logits).entropy()
    logprobs = every.gather(-1, TARGETS[:, None])[:, 0]
    (expected,) = torch.autograd.grad(weighted(logprobs, entropies, every.mean(dim=-1), weights), logits)
    found, gradient = in_shares(logits, ranks, weights)
    for rank in found:
        torch.testing.assert_close(rank.logprobs, logprobs)
        torch.testing.assert_close(rank.entropies, entropies)
        assert torch.equal(rank.hits, logits.argmax(dim=-1) == TARGETS)
    torch.testing.assert_close(gradient, expected)


def test_a_rank_may_have_nothing_but_banned_tokens() -> None:
    logits = torch.randn(COUNT, VOCABULARY, generator=torch.Generator().manual_seed(3))
    logits[TARGETS < 6, 6:] = -torch.inf
    logits[TARGETS >= 6, :6] = -torch.inf
    expected = Categorical(logits=logits.double())
    found, gradient = in_shares(logits, 2, (1e6, 1e6, 0.0))
    for rank in found:
        torch.testing.assert_close(rank.logprobs.double(), expected.log_prob(TARGETS), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(rank.entropies.double(), expected.entropy(), rtol=1e-5, atol=1e-6)
    assert gradient.isfinite().all()
    assert not gradient[logits == -torch.inf].any()


def test_of_equal_logits_the_first_is_the_guess_wherever_it_lies() -> None:
    logits = torch.zeros(COUNT, VOCABULARY)
    for ranks in (1, 3):
        found, _ = in_shares(logits, ranks, (1.0, 0.0, 0.0))
        assert all(torch.equal(rank.hits, TARGETS == 0) for rank in found)


def test_plain_logits_are_all_there_are() -> None:
    logits = torch.zeros(2, 5)
    found, share = local_logits(logits)
    assert found is logits
    assert share == VocabShard(0, 5, 5)
