"""Alarms ring when they should, at once or after a while, and stop only where they are to."""

from __future__ import annotations

import logging

import pytest

from framework.training.rl.alarms import MAX_STEPS_UNSEEN, Alarm, AlarmError, Alarms

NAN = float("nan")


@pytest.mark.parametrize(
    ("above", "below", "value", "out"),
    [(1.0, None, 1.0, False), (1.0, None, 1.1, True), (None, 1.0, 0.9, True), (None, 1.0, 5.0, False),
     (2.0, 1.0, 1.5, False), (1.0, None, NAN, True), (None, 1.0, NAN, True)],
)  # fmt: skip
def test_bounds(above: float | None, below: float | None, value: float, out: bool) -> None:
    assert Alarm(metric="entropy", above=above, below=below).is_out(value) == out


@pytest.mark.guarantee("An alarm warns or stops the run, by name, after the configured number of steps out of bounds")
def test_only_a_row_of_bad_steps_rings_and_stops_by_name() -> None:
    alarms = Alarms({"collapse": Alarm(metric="entropy", below=0.1, steps=2, action="stop")})
    for step, entropy in enumerate([0.0, 1.0, 0.0]):
        alarms.check(step, {"entropy": entropy})
    with pytest.raises(AlarmError, match=r"alarm collapse, step 3: entropy is 0\.05, for 2 steps"):
        alarms.check(3, {"entropy": 0.05})


@pytest.mark.guarantee("An alarm warns or stops the run, by name, after the configured number of steps out of bounds")
def test_a_warning_does_not_stop(caplog: pytest.LogCaptureFixture) -> None:
    alarms = Alarms({"clip": Alarm(metric="clipped", above=0.3)})
    with caplog.at_level(logging.WARNING):
        alarms.check(1, {"clipped": 0.2})
        assert not caplog.records
        alarms.check(2, {"clipped": 0.4})
    assert "alarm clip, step 2: clipped is 0.4" in caplog.text


def test_an_alarm_on_nothing_is_an_error() -> None:
    alarms = Alarms({"clip": Alarm(metric="clip_share", above=0.3)})
    for step in range(1, MAX_STEPS_UNSEEN):
        alarms.check(step, {"entropy": 1.0})
    with pytest.raises(ValueError, match=r"alarms\.clip: no step has a metric clip_share; this one has entropy"):
        alarms.check(MAX_STEPS_UNSEEN, {"entropy": 1.0})
    with pytest.raises(ValueError, match="no bound"):
        Alarm(metric="entropy")


def test_a_step_without_the_metric_neither_rings_nor_ends_a_streak() -> None:
    alarms = Alarms({"parse": Alarm(metric="unparsed", above=0.5, steps=2, action="stop")})
    alarms.check(1, {"unparsed": 0.9})
    for step in range(2, 2 + MAX_STEPS_UNSEEN):
        alarms.check(step, {"entropy": 1.0})
    with pytest.raises(AlarmError, match="alarm parse, step 9"):
        alarms.check(9, {"unparsed": 0.9})
