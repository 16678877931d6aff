"""The heartbeat: one line on standard output per step, which people, hang rules and ledgers read alike (contract 5).

heartbeat run=demo attempt=1 stage=broad step=12 loss=1.2345 tokens_per_s=5310.2 step_s=0.412
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_LINE = re.compile(
    r"heartbeat run=(?P<run>\S+) attempt=(?P<attempt>\d+) stage=(?P<stage>\S+) step=(?P<step>\d+) "
    r"loss=(?P<loss>\S+) tokens_per_s=(?P<tokens_per_s>\S+) step_s=(?P<step_s>\S+)$"
)


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What one optimizer step reports. `step` counts over the whole curriculum; `step_s` is its wall time (s)."""

    run: str
    attempt: int
    stage: str
    step: int
    loss: float
    tokens_per_s: float
    step_s: float

    def __str__(self) -> str:
        return (
            f"heartbeat run={self.run} attempt={self.attempt} stage={self.stage} step={self.step} "
            f"loss={self.loss:.6g} tokens_per_s={self.tokens_per_s:.1f} step_s={self.step_s:.4f}"
        )


def parse_heartbeat(line: str) -> Heartbeat | None:
    """The heartbeat that `line` holds, or None for any other line of a log."""
    found = _LINE.search(line.strip())
    if found is None:
        return None
    return Heartbeat(
        run=found["run"],
        attempt=int(found["attempt"]),
        stage=found["stage"],
        step=int(found["step"]),
        loss=float(found["loss"]),
        tokens_per_s=float(found["tokens_per_s"]),
        step_s=float(found["step_s"]),
    )
