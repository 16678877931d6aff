"""How long workers may show no sign of life before that is a hang."""

from __future__ import annotations

import pytest

from framework.launch.supervisor.watchdog import MIN_STEPS, HangRules, StepTimes, Watchdog
from framework.run.phases import Phase

RULES = HangRules(factor=3.0, floor_s=10.0, start_s=100.0, checkpoint_s=200.0, evaluate_s=300.0)


def trained(seconds: float, steps: int = MIN_STEPS) -> Watchdog:
    """A watchdog that has seen so many steps of so many seconds, the last of them at 0."""
    watchdog = Watchdog(RULES, {}, 0.0)
    watchdog.enter(Phase.PRODUCTIVE, 0.0)
    for _ in range(steps):
        watchdog.step("broad", seconds, 0.0)
    return watchdog


def test_a_step_may_take_three_learned_ones_and_the_floor() -> None:
    watchdog = trained(2.0)
    assert watchdog.limit_s == pytest.approx(16.0)
    assert watchdog.overdue(16.0) is None
    assert watchdog.overdue(16.1) == "no sign of life for 16.1 s in phase productive, the limit is 16.0 s"


def test_every_step_is_a_sign_of_life() -> None:
    watchdog = trained(2.0)
    watchdog.step("broad", 2.0, 15.0)
    assert watchdog.overdue(30.0) is None
    assert watchdog.overdue(32.0) is not None


def test_until_steps_are_known_the_start_s_limit_holds() -> None:
    watchdog = trained(2.0, steps=MIN_STEPS - 1)
    assert watchdog.overdue(99.0) is None
    assert watchdog.overdue(101.0) is not None


@pytest.mark.parametrize(
    ("phase", "limit_s"),
    [
        (Phase.START, 100.0),
        (Phase.LOAD, 100.0),
        (Phase.COMPILE, 100.0),
        (Phase.CHECKPOINT, 200.0),
        (Phase.EVALUATE, 300.0),
    ],
)
def test_sections_have_limits_of_their_own(phase: Phase, limit_s: float) -> None:
    watchdog = trained(2.0)
    watchdog.enter(phase, 0.0)
    assert watchdog.limit_s == limit_s


def test_one_slow_step_in_ten_does_not_make_a_hang_later_known() -> None:
    watchdog = trained(2.0, steps=19)
    watchdog.step("broad", 500.0, 0.0)
    assert watchdog.limit_s == pytest.approx(16.0)


def test_steps_that_grow_longer_are_learned() -> None:
    watchdog = trained(2.0, steps=500)
    for _ in range(200):
        watchdog.step("broad", 20.0, 0.0)
    assert watchdog.limit_s == pytest.approx(70.0)


def test_what_was_learned_outlives_the_attempt() -> None:
    steps: StepTimes = {}
    for expected_s in (100.0, 16.0):
        watchdog = Watchdog(RULES, steps, 0.0)
        watchdog.enter(Phase.LOAD, 0.0)
        watchdog.enter(Phase.PRODUCTIVE, 0.0)
        watchdog.step("broad", 2.0, 0.0)
        assert watchdog.limit_s == pytest.approx(expected_s)
        for _ in range(MIN_STEPS):
            watchdog.step("broad", 2.0, 0.0)


def test_another_stage_s_steps_may_be_longer() -> None:
    watchdog = trained(2.0)
    watchdog.enter(Phase.LOAD, 0.0)
    watchdog.enter(Phase.PRODUCTIVE, 0.0)
    assert watchdog.limit_s == 100.0
    for _ in range(MIN_STEPS):
        watchdog.step("policy", 50.0, 0.0)
    assert watchdog.limit_s == pytest.approx(160.0)
