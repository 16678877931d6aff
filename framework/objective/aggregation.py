"""Aggregation of token losses to one number: a weighted sum, divided by a denominator known before the step begins.

The sum and the denominator both add up over answers, and therefore over micro-batches and ranks. One division by the
denominator of the whole step makes the mean exact (see `framework.objective.normalisation`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from framework.objective.groups import group_sizes
from framework.recipe.component import component
from framework.recipe.ranges import Tokens


class Aggregation(Protocol):
    """The weight of each token and the denominator of their sum."""

    def weights(self, samples: Tensor, count: int) -> Tensor:
        """Weights `(n,)` float32 of tokens that belong to the answers `samples` `(n,)` int64 in [0, `count`).

        All tokens of an answer must be in the same call.
        """
        ...

    def denominator(self, tokens: float, samples: float) -> float:
        """The denominator of a whole step with so many sampled tokens and answers.

        Tokens and answers that a correction masks are included.
        """
        ...


@component
@dataclass(frozen=True)
class TokenMean:
    """The mean over all tokens of the step, in which long answers weigh more.

        L = sum_i sum_t L_it / sum_i |o_i|

    DAPO (Yu et al. 2025, arXiv 2503.14476, equation 8).
    """

    def weights(self, samples: Tensor, count: int) -> Tensor:
        """Ones."""
        return torch.ones_like(samples, dtype=torch.float32)

    def denominator(self, tokens: float, samples: float) -> float:
        """The number of tokens."""
        return tokens


@component
@dataclass(frozen=True)
class SequenceMean:
    """The mean over answers of the mean over each answer's tokens.

        L = 1 / n sum_i (1 / |o_i| sum_t L_it)

    GRPO (Shao et al. 2024, arXiv 2402.03300, equation 3).
    """

    def weights(self, samples: Tensor, count: int) -> Tensor:
        """1 / length of the answer."""
        return (1.0 / group_sizes(samples, count))[samples]

    def denominator(self, tokens: float, samples: float) -> float:
        """The number of answers."""
        return samples


@component
@dataclass(frozen=True)
class ConstantLength:
    """The sum over tokens, divided by the number of answers times a constant, which favours no length of answer.

        L = 1 / (n length) sum_i sum_t L_it

    Dr. GRPO (Liu et al. 2025, arXiv 2503.20783, section 3).
    """

    length: Tokens
    """The constant, in tokens: for example the longest answer that may be sampled."""

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"aggregation.length: {self.length} tokens; give at least 1")

    def weights(self, samples: Tensor, count: int) -> Tensor:
        """Ones."""
        return torch.ones_like(samples, dtype=torch.float32)

    def denominator(self, tokens: float, samples: float) -> float:
        """The number of answers times `length`."""
        return samples * self.length
