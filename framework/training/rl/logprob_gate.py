"""The gate on the mismatch of engine and trainer: it stops a run whose engine holds other weights."""

from __future__ import annotations

from torch import Tensor

from framework.generation.engine import EngineError
from framework.objective.normalisation import sum_over_ranks
from framework.parallel.mesh import DataRank


class LogprobGate:
    """Compares the log-probabilities of engine and trainer.

    Args:
        max_gap: Largest mean |log pi_train - log pi_engine| of a token, in nats.
        dp_rank: This process among those that train different samples.
    """

    def __init__(self, max_gap: float, dp_rank: DataRank) -> None:
        self.max_gap, self.dp_rank = max_gap, dp_rank

    def over_ranks(self, gap: Tensor) -> Tensor:
        """Returns a `gap` `(2,)`, see `PolicyBatch.logprob_gap`, over all ranks, on its device (collective)."""
        return sum_over_ranks(gap.double(), self.dp_rank.group)

    def check(self, gap: Tensor, step: int) -> None:
        """Raises `EngineError` where the mean of a `gap` over all ranks is too large. A gap over no tokens passes."""
        total, count = gap.tolist()
        if count and not total / count <= self.max_gap:
            raise EngineError(
                f"logprob gate, step {step}: the log-probabilities of engine and trainer differ by {total / count:.3g} "
                f"nats a token, stage.max_logprob_gap allows {self.max_gap:g}; the engine has other weights, another "
                "precision or other inputs: compare its version, its temperature and its token ids"
            )
