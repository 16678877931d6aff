"""One format, written and read."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from framework.run.heartbeat import Heartbeat, parse_heartbeat


def test_a_heartbeat_survives_the_log() -> None:
    beat = Heartbeat("sft_drive", 2, "broad", 120, 1.25, 5310.5, 0.4123)
    assert parse_heartbeat(f"[rank 0] {beat}\n") == beat
    rewarded = replace(beat, reward=-0.25)
    assert str(rewarded) == f"{beat} reward=-0.25"
    assert parse_heartbeat(str(rewarded)) == rewarded


def test_not_a_number_stays_visible() -> None:
    beat = parse_heartbeat(str(Heartbeat("r", 1, "broad", 1, math.nan, 0.0, 0.1)))
    assert beat is not None
    assert math.isnan(beat.loss)


@pytest.mark.parametrize(
    "line", ["", "step=3 loss=2", "heartbeat run=x attempt=one stage=a step=1 loss=1 tokens_per_s=1 step_s=1"]
)
def test_other_lines_are_no_heartbeats(line: str) -> None:
    assert parse_heartbeat(line) is None
