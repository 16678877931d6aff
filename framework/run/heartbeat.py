"""The heartbeat: one line per step on standard output, for people, hang rules and ledgers alike (contract 5).

heartbeat run=demo attempt=1 stage=broad step=12 loss=1.2345 tokens_per_s=5310.2 step_s=0.412

A step of reinforcement learning adds reward=0.25: its loss says little.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

_LINE = re.compile(
    r"heartbeat run=(?P<run>\S+) attempt=(?P<attempt>\d{1,18}) stage=(?P<stage>\S+) step=(?P<step>\d{1,18}) "
    r"loss=(?P<loss>\S+) tokens_per_s=(?P<tokens_per_s>\S+) step_s=(?P<step_s>\S+)(?: reward=(?P<reward>\S+))?$"
)


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What one optimizer step reports."""

    run: str
    """The run's name."""
    attempt: int
    """The run's attempt, counted from 1."""
    stage: str
    """The stage's name."""
    step: int
    """Optimizer steps, counted over the whole curriculum."""
    loss: float
    """The step's mean loss."""
    tokens_per_s: float
    """Positions that the model processed over all ranks, per second."""
    step_s: float
    """Wall time of the step (s), waiting for data included."""
    reward: float | None = None
    """Mean reward of the step's answers; None where none are rewarded."""

    def __str__(self) -> str:
        reward = "" if self.reward is None else f" reward={self.reward:.6g}"
        return (
            f"heartbeat run={self.run} attempt={self.attempt} stage={self.stage} step={self.step} "
            f"loss={self.loss:.6g} tokens_per_s={self.tokens_per_s:.1f} step_s={self.step_s:.4f}{reward}"
        )


def parse_heartbeat(line: str) -> Heartbeat | None:
    """The heartbeat in a line of a log; None for any other line, one with other numbers than a step has included."""
    match = _LINE.search(line.strip())
    if match is None:
        return None
    try:
        loss, tokens_per_s, step_s = (float(match[name]) for name in ("loss", "tokens_per_s", "step_s"))
        reward = None if match["reward"] is None else float(match["reward"])
    except ValueError:
        return None
    if not (math.isfinite(step_s) and step_s >= 0):
        return None
    return Heartbeat(
        match["run"], int(match["attempt"]), match["stage"], int(match["step"]), loss, tokens_per_s, step_s, reward
    )
