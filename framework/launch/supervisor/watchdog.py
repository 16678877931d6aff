"""Tells a hang from patience: how long no sign of life may come, by what the workers are at and how fast they were."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from framework.run.phases import Phase

STEPS = 200
"""So many of the newest steps are learned from."""
QUANTILE = 0.9
"""The learned step time is that of a slow step, not of the slowest: one in ten may take longer."""
ENOUGH = 5
"""Steps before anything is learned."""


@dataclass(frozen=True, slots=True)
class HangRules:
    """A step may take `factor` times the learned step time and `floor_s` seconds. What is not repeated often enough to
    be learned has an allowance of its own (s): to start, up to the second step; a checkpoint; an examination.
    """

    factor: float = 3.0
    floor_s: float = 60.0
    start_s: float = 1800.0
    checkpoint_s: float = 1800.0
    evaluate_s: float = 14400.0

    def allowance(self, phase: Phase) -> float:
        """How long `phase` may show no sign of life (s), if it is not a step."""
        return {Phase.CHECKPOINT: self.checkpoint_s, Phase.EVALUATE: self.evaluate_s}.get(phase, self.start_s)


Steps = dict[str, deque[float]]
"""The newest step times (s) of each stage: one stage's may take a hundred times another's."""


class Watch:
    """Hears of an attempt's steps and phases, and says when it hears of neither for too long.

    `steps` are kept from one attempt to the next.
    """

    def __init__(self, rules: HangRules, steps: Steps, now: float) -> None:
        self.rules = rules
        self.steps = steps
        self.stage: str | None = None
        self.phase = Phase.START
        self.heard = now

    def step(self, stage: str, seconds: float, now: float) -> None:
        """A step of `seconds` of `stage` has ended at `now`."""
        self.stage = stage
        self.steps.setdefault(stage, deque(maxlen=STEPS)).append(seconds)
        self.heard = now

    def enter(self, phase: Phase, now: float) -> None:
        """A worker says that it is at `phase` since `now`."""
        if phase is Phase.LOAD:
            self.stage = None  # another may begin; its first step tells
        self.phase = phase
        self.heard = now

    @property
    def learned_s(self) -> float | None:
        """How long a slow step of this stage takes (s); None as long as too few have been seen."""
        seen = self.steps.get(self.stage or "", ())
        return sorted(seen)[int(QUANTILE * (len(seen) - 1))] if len(seen) >= ENOUGH else None

    @property
    def limit_s(self) -> float:
        """How long there may be no sign of life (s)."""
        learned = self.learned_s
        if self.phase is not Phase.PRODUCTIVE or learned is None:
            return self.rules.allowance(self.phase)
        return self.rules.factor * learned + self.rules.floor_s

    def overdue(self, now: float) -> str | None:
        """What has come to nothing for how long; None while there is hope."""
        silent = now - self.heard
        if silent <= self.limit_s:
            return None
        return f"no sign of life for {silent:.1f} s at {self.phase}, where {self.limit_s:.1f} s are allowed"
