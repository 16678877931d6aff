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


@pytest.mark.fault("numbers that no record may hold")
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("loss", "abc"), ("reward", "x"), ("step_s", "nan"), ("step_s", "-5"), ("step_s", "inf"),
        ("tokens_per_s", "1,0"), ("attempt", "9" * 5000), ("step", "9" * 40),
    ],
)  # fmt: skip
def test_a_line_of_other_numbers_is_no_heartbeat(field: str, value: str) -> None:
    parts = {"run": "a", "attempt": "1", "stage": "s", "step": "1", "loss": "1", "tokens_per_s": "1", "step_s": "1"}
    line = "heartbeat " + " ".join(
        f"{name}={text}" for name, text in (parts | {"reward": "1"} | {field: value}).items()
    )
    assert parse_heartbeat(line.replace(value, "1")) is not None
    assert parse_heartbeat(line) is None
