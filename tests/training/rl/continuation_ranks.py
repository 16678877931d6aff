"""One rank of reinforcement learning that goes on with its answers: a rank has fewer answers than the one before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from framework.training.rl.collector import Collector
from framework.training.rl.rollout import Prompt
from tests.training.rl import told_policy


def train(told: Path, words: Sequence[str]) -> int:
    """The command `python -m framework WORDS`; `told` gets a file rank-N.jsonl, a line a step."""
    draw = Collector._draw

    def fewer(self: Collector, step: int) -> list[Prompt]:
        found = draw(self, step)
        return found[: len(found) - self.dp_rank.rank]

    Collector._draw = fewer  # type: ignore[method-assign]
    return told_policy.train(told, words)
