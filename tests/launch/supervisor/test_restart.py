"""When another attempt follows a failed one, and the exit code where none does."""

from __future__ import annotations

from pathlib import Path

import pytest

from framework.launch.exit_codes import ExitCode
from framework.launch.supervisor.failure import Evidence, Failure, Kind
from framework.launch.supervisor.restart import FailedAttempt, FailureLedger, RestartPolicy, committed_step

POLICY = RestartPolicy(restarts=10, max_attempts_without_progress=4, back_off_s=5.0, max_back_off_s=12.0)


def history(*commits: tuple[int, int], kind: Kind = Kind.SOFTWARE, every_s: float = 60.0) -> list[FailedAttempt]:
    """Failed attempts, each with the steps of the newest checkpoint at its start and at its end."""
    return [FailedAttempt(n + 1, n * every_s, kind, 0, "", *steps) for n, steps in enumerate(commits)]


def test_an_attempt_that_came_further_is_followed_at_once() -> None:
    decision = POLICY.decide(history((0, 0), (0, 0), (0, 5)))
    assert (decision.after_s, decision.code) == (0.0, None)


def test_attempts_without_progress_are_followed_later_and_later() -> None:
    failed = history((0, 5), (5, 5), (5, 5), (5, 5))
    assert [POLICY.decide(failed[: n + 1]).after_s for n in range(4)] == [0.0, 0.0, 5.0, 10.0]
    longer = RestartPolicy(max_attempts_without_progress=9, back_off_s=5.0, max_back_off_s=12.0)
    assert longer.decide(history(*[(5, 5)] * 8)).after_s == 12.0


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (Kind.SOFTWARE, ExitCode.STOP),
        (Kind.NOT_FINITE, ExitCode.STOP),
        (Kind.HARDWARE, ExitCode.REQUEUE),
        (Kind.HANG, ExitCode.REQUEUE),
    ],
)
def test_without_progress_it_ends_or_moves_where_nodes_may_be_better(kind: Kind, code: int) -> None:
    assert POLICY.decide(history(*[(5, 5)] * 3, kind=kind)).code is None
    decision = POLICY.decide(history(*[(5, 5)] * 4, kind=kind))
    assert decision.code == code
    assert "4 attempts in a row committed no checkpoint after step 5" in decision.why


def test_no_node_is_better_for_ever() -> None:
    assert POLICY.decide(history(*[(5, 5)] * 8, kind=Kind.HARDWARE)).code == ExitCode.STOP


def test_restarts_are_capped_by_the_day() -> None:
    steps = [(n, n + 1) for n in range(11)]
    assert POLICY.decide(history(*steps, every_s=60.0)).code == ExitCode.STOP
    assert POLICY.decide(history(*steps, every_s=86400.0)).code is None


@pytest.mark.parametrize(
    ("kind", "code"), [(Kind.RECIPE, ExitCode.STOP), (Kind.WALL_TIME, ExitCode.REQUEUE), (Kind.PREEMPTION, None)]
)
def test_some_failures_settle_it_at_once(kind: Kind, code: int | None) -> None:
    assert POLICY.decide(history((0, 5), kind=kind)).code == code


@pytest.mark.fault("time slices that use up requeues")
@pytest.mark.guarantee("Only failures use up requeues and restarts: time slices, preemptions and stops do not")
def test_time_slices_and_preemptions_use_up_no_restarts() -> None:
    slices = history(*[(n, n + 1) for n in range(30)], kind=Kind.WALL_TIME)
    assert POLICY.decide(slices).code == ExitCode.REQUEUE
    preempted = history(*[(n, n + 1) for n in range(30)], kind=Kind.PREEMPTION)
    assert POLICY.decide([*slices, *preempted]).code is None
    failed = POLICY.decide([*slices, *preempted, *history((30, 31))])
    assert (failed.code, failed.why) == (None, "restart 1 of 10 today")


@pytest.mark.fault("time slices that use up requeues")
def test_preemptions_before_anything_is_saved_end_no_run() -> None:
    preempted = history(*[(5, 5)] * 50, kind=Kind.PREEMPTION)
    decision = POLICY.decide(preempted)
    assert (decision.code, decision.after_s) == (None, 12.0)
    between = [each for pair in zip(history(*[(5, 5)] * 3), preempted, strict=False) for each in pair]
    assert POLICY.decide(between).code is POLICY.decide(between[:-1]).code is None, "three failures, of four allowed"
    assert POLICY.decide([*between, *history((5, 5))]).code == ExitCode.STOP


def test_slices_in_which_nothing_is_saved_do_not_follow_each_other_for_ever() -> None:
    stalled = history(*[(5, 5)] * 4, kind=Kind.WALL_TIME)
    assert POLICY.decide(stalled[:3]).code == ExitCode.REQUEUE
    decision = POLICY.decide(stalled)
    assert decision.code == ExitCode.STOP
    assert "4 slices of wall time committed no checkpoint after step 5; raise launch.notice_s" in decision.why


def test_a_line_that_a_crash_has_cut_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    FailureLedger(tmp_path).add(1, Failure(Kind.HANG, "silence", 3, 17.0, Evidence.CAUSE), 5)
    with (tmp_path / "failures.jsonl").open("ab") as file:
        file.write(b'{"attempt": 2, "ti\n[]\n\xff\n{}\n')
        fields = b'"kind": "hang", "node": 0, "detail": "", "began_at": 0, "committed": 0'
        file.write(b'{"attempt": 3, "time": "noon", ' + fields + b"}\n")
    assert [failed.attempt for failed in FailureLedger(tmp_path).history] == [1]
    assert "failures.jsonl" in caplog.text


def test_the_history_outlives_the_supervisor(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step-00000012.attempt-1").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-00000012.attempt-1" / "COMMIT").touch()
    (tmp_path / "checkpoints" / "step-00000020.attempt-1").mkdir()
    assert committed_step(tmp_path) == 12
    ledger = FailureLedger(tmp_path)
    ledger.add(1, Failure(Kind.HANG, "silence", 3, 17.0, Evidence.CAUSE), began_at=5)
    assert FailureLedger(tmp_path).history == ledger.history == [FailedAttempt(1, 17.0, Kind.HANG, 3, "silence", 5, 12)]
    assert ledger.history[0].progressed


def test_a_full_disk_does_not_hide_failures_from_this_supervisor(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = FailureLedger(tmp_path)
    ledger.path.symlink_to("/dev/full")
    ledger.add(1, Failure(Kind.DATA, "No space left on device", 0, 1.0, Evidence.CAUSE), began_at=0)
    assert len(ledger.history) == 1
    assert "No space left" in caplog.text
