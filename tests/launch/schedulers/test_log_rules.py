"""The log rules on lines that training printed, by the documented semantics of HyperPod's monitoring."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from framework.launch.schedulers.log_rules import LogRules, heartbeat_pattern, monitoring
from framework.run.heartbeat import Heartbeat, parse_heartbeat
from tests.launch.schedulers.log_monitor import Monitor

LOG = Path(__file__).with_name("training.log").read_text(encoding="utf-8").splitlines()
"""The output of one node of two: `sft_drive scale=tiny`, ten steps."""
BEATS = [beat for line in LOG if (beat := parse_heartbeat(line))]
RULES = LogRules(start_s=100, hang_s=50, slow_step_s=2, slow_points=3)


def replay(lines: list[str], starts: float = 60, step: float = 5) -> Monitor:
    """Replay a log whose first heartbeat comes `starts` seconds after the start, and another every `step` seconds."""
    monitor, at = Monitor(monitoring(RULES)), starts
    for line in lines:
        at += step * (parse_heartbeat(line) is not None)
        monitor.line(at, line)
    monitor.wait(at + 40)
    return monitor


def test_the_log_is_a_real_one() -> None:
    assert len(BEATS) >= 10
    assert len(LOG) > len(BEATS) + 5


def test_a_healthy_run_alarms_nobody() -> None:
    assert replay(LOG).verdicts == []


def test_a_run_that_does_not_start_hangs() -> None:
    assert replay([line for line in LOG if parse_heartbeat(line) is None], starts=101).verdicts[0][1:] == (
        "start",
        "HANGING",
    )
    assert replay(LOG, starts=101).verdicts[0][1:] == ("start", "HANGING")


@pytest.mark.guarantee("The HyperPod operator detects hangs by rules that are generated from the heartbeat's format")
def test_a_run_that_falls_silent_hangs_though_it_prints_other_lines() -> None:
    monitor = replay(LOG)
    monitor.line(60 + 5 * len(BEATS) + 51, "[rank 0] evaluating recordings after drive")
    assert monitor.verdicts[0][1:] == ("hang", "HANGING")


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_no_number_is_a_fault(loss: float) -> None:
    lines = [*LOG, str(replace(BEATS[-1], loss=loss))]
    assert [verdict[1:] for verdict in replay(lines).verdicts] == [("not-finite", "FAULT")]


def test_three_slow_steps_in_a_row_are_slow_and_two_are_not() -> None:
    slow, quick = str(replace(BEATS[0], step_s=3.5)), str(BEATS[-1])
    assert replay([slow, slow, quick, slow, slow]).verdicts == []
    assert [verdict[1:] for verdict in replay([slow, slow, slow]).verdicts] == [("slow", "SLOW")]


def test_no_step_is_too_slow_without_a_limit() -> None:
    assert [rule["name"] for rule in monitoring(LogRules())] == ["start", "hang", "not-finite"]


@pytest.mark.guarantee("The HyperPod operator detects hangs by rules that are generated from the heartbeat's format")
@pytest.mark.parametrize("prefix", ["", "[default0]:", "2026-11-26T14:00:00 "])
def test_every_heartbeat_matches_whatever_stands_before_it(prefix: str) -> None:
    for reward in (None, -0.25):
        beat = Heartbeat("a/b-c.d=1", 12, "broad", 123456, -1.5e-07, 1e9, 0.0001, reward)
        assert re.match(heartbeat_pattern(), f"{prefix}{beat}")
        assert re.match(heartbeat_pattern(step_s="([0-9.]+)"), f"{prefix}{beat}")[1] == "0.0001"
        assert re.match(heartbeat_pattern(loss="([^ ]+)"), f"{prefix}{beat}")[1] == "-1.5e-07"


def test_no_pattern_matches_an_empty_line() -> None:
    assert not [rule for rule in monitoring(RULES) if re.match(rule["logPattern"], "")]


def test_a_field_that_heartbeats_do_not_have_is_refused() -> None:
    with pytest.raises(TypeError, match="no speed; it has run, attempt"):
        heartbeat_pattern(speed="x")
