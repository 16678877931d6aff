"""The watchdog: it tells a hang from a slow step by what the workers are doing and how fast they were before."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from framework.recipe.component import component
from framework.recipe.ranges import PositiveWeight, Seconds, Wait
from framework.run.phases import Phase

WINDOW = 200
"""Number of newest steps from which the step time is learned."""
QUANTILE = 0.9
"""The learned step time is that of a slow step, not of the slowest: one in ten may take longer."""
MIN_STEPS = 5
"""Steps of a stage before its step time counts as learned."""


@component
@dataclass(frozen=True, slots=True)
class HangRules:
    """How long workers may show no sign of life, which is a heartbeat or a new phase.

    A step has `factor` x the learned step time + `floor_s`. Whatever repeats too rarely to be learned has a fixed
    limit.
    """

    factor: PositiveWeight = 3.0
    """Multiple of the learned step time."""
    floor_s: Wait = 60.0
    """Added to it (s), so that short steps leave room for a slow disk or a garbage collection."""
    start_s: Seconds = 1800.0
    """Limit of the start (s), until enough steps are known; it includes loading and compiling."""
    checkpoint_s: Seconds = 1800.0
    """Limit of a checkpoint (s)."""
    evaluate_s: Seconds = 14400.0
    """Limit of an evaluation (s)."""

    def fixed_limit(self, phase: Phase) -> float:
        """Return the fixed limit of `phase` (s)."""
        return {Phase.CHECKPOINT: self.checkpoint_s, Phase.EVALUATE: self.evaluate_s}.get(phase, self.start_s)


StepTimes = dict[str, deque[float]]
"""The newest step times (s) by stage. One stage's steps may take a hundred times as long as another's."""


class Watchdog:
    """Observes the steps and phases of an attempt, and notices when neither comes for too long.

    Args:
        rules: The limits.
        step_times: Step times so far, extended with every step. They outlive the attempt.
        now: The attempt's start, on the monotonic clock (s).
    """

    def __init__(self, rules: HangRules, step_times: StepTimes, now: float) -> None:
        self.rules = rules
        self.step_times = step_times
        self.stage: str | None = None
        self.phase = Phase.START
        self.last_sign = now

    def step(self, stage: str, seconds: float, now: float) -> None:
        """Record a step of `stage` that took `seconds` and ended at `now`."""
        self.stage = stage
        self.step_times.setdefault(stage, deque(maxlen=WINDOW)).append(seconds)
        self.last_sign = now

    def enter(self, phase: Phase, now: float) -> None:
        """Record that a worker entered `phase` at `now`."""
        if phase is Phase.LOAD:
            self.stage = None  # another stage may start; its first step tells
        self.phase = phase
        self.last_sign = now

    @property
    def learned_s(self) -> float | None:
        """The time of a slow step of this stage (s); None while too few steps are known."""
        times = self.step_times.get(self.stage or "", ())
        return sorted(times)[int(QUANTILE * (len(times) - 1))] if len(times) >= MIN_STEPS else None

    @property
    def limit_s(self) -> float:
        """How long there may be no sign of life now (s)."""
        learned = self.learned_s
        if self.phase is not Phase.PRODUCTIVE or learned is None:
            return self.rules.fixed_limit(self.phase)
        return self.rules.factor * learned + self.rules.floor_s

    def overdue(self, now: float) -> str | None:
        """Describes the silence once it exceeds the limit, else None."""
        silence = now - self.last_sign
        if silence <= self.limit_s:
            return None
        return f"no sign of life for {silence:.1f} s in phase {self.phase}, the limit is {self.limit_s:.1f} s"
