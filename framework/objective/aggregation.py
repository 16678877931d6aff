"""How the tokens' losses make one number: a weighted sum, divided by a count that is known before the step begins.

Both are sums over answers, so that they add up over micro-batches and ranks, and one division by the whole step's count
makes the mean exact (see `framework.objective.normalisation`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Aggregation(Protocol):
    """Weights of tokens, and what their sum is divided by."""

    def weights(self, samples: Tensor, count: int) -> Tensor:
        """Of tokens that belong to the answers `samples` `(n,)` int64 in [0, `count`), each here as a whole: `(n,)`
        float32.
        """
        ...

    def denominator(self, tokens: float, samples: float) -> float:
        """Of a whole step of so many sampled tokens and answers, those that a correction drops included."""
        ...


@dataclass(frozen=True)
class TokenMean:
    """The mean over all tokens of the step: long answers weigh more (DAPO, Yu et al. 2025, arXiv 2503.14476, equation
    8).
    """

    def weights(self, samples: Tensor, count: int) -> Tensor:
        """Ones."""
        return torch.ones_like(samples, dtype=torch.float32)

    def denominator(self, tokens: float, samples: float) -> float:
        """Tokens."""
        return tokens


@dataclass(frozen=True)
class SequenceMean:
    """The mean over answers of the mean over each answer's tokens (GRPO, Shao et al. 2024, arXiv 2402.03300, equation
    3).
    """

    def weights(self, samples: Tensor, count: int) -> Tensor:
        """1 / length of the answer."""
        return (1.0 / torch.bincount(samples, minlength=count))[samples]

    def denominator(self, tokens: float, samples: float) -> float:
        """Answers."""
        return samples


@dataclass(frozen=True)
class ConstantLength:
    """The sum over tokens, divided by answers x `length`, a constant such as the longest answer allowed: neither short
    nor long answers are favoured (Dr. GRPO, Liu et al. 2025, arXiv 2503.20783, section 3).
    """

    length: int

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"aggregation.length: {self.length} tokens; give at least 1")

    def weights(self, samples: Tensor, count: int) -> Tensor:
        """Ones."""
        return torch.ones_like(samples, dtype=torch.float32)

    def denominator(self, tokens: float, samples: float) -> float:
        """Answers x `length`."""
        return samples * self.length
