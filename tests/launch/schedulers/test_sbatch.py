"""What an sbatch script asks for, and what it does when the workers of its job end."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from framework.launch.exit_codes import ExitCode
from framework.launch.schedulers.slurm import SlurmScheduler
from framework.launch.spec import SpecError
from framework.launch.supervisor.failure import Kind
from framework.launch.supervisor.restart import FailedAttempt
from framework.run.files import append_line
from framework.run.layout import FAILURES_FILE, phases_file
from framework.run.phases import Line, Phase
from tests.launch.bash import run_script
from tests.launch.specimens import SPEC, sbatch_script, spec


def directives(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")]


def test_what_is_asked_for() -> None:
    assert directives(sbatch_script(SPEC)) == [
        "partition=p5", "nodes=4", "ntasks-per-node=1", "gpus-per-node=8", "exclusive", "time=600",
        "signal=SIGUSR1@240", "requeue", "open-mode=append",
        "export=HOME,LANG,LOGNAME,PATH,SHELL,USER,COMET_API_KEY,RECORDINGS",
        "chdir=/shared/checkout", "job-name=drive/seed-1", "output=/shared/runs/drive/seed-1/job.log",
    ]  # fmt: skip


def test_directives_come_before_the_first_command() -> None:
    lines = sbatch_script(SPEC).splitlines()
    assert lines[0] == "#!/bin/bash"
    assert not any(line.startswith("#SBATCH") for line in lines[lines.index("") :])


def test_no_gpus_without_an_accelerator() -> None:
    assert not [line for line in directives(sbatch_script(spec(gpus=0))) if "gpus" in line]


def test_jobs_may_share_a_node() -> None:
    assert "exclusive" not in directives(sbatch_script(spec(exclusive=False)))


@pytest.mark.parametrize("field", ["partition", "account", "qos", "reservation", "constraint"])
@pytest.mark.parametrize("value", ["a b", "a\n#SBATCH --x", "$(a)", "--a", "'", ""])
def test_placements_that_are_refused(field: str, value: str) -> None:
    with pytest.raises(SpecError, match=f"launch.{field}"):
        SlurmScheduler(**{"partition": "p5", field: value})


def test_the_workers_start_once_the_preflight_of_all_nodes_has_passed(tmp_path: Path) -> None:
    ran = run_script(sbatch_script(SPEC), tmp_path)
    first, second = ran.calls
    assert ran.code == 0, ran.output
    assert "framework.launch.preflight" in first
    assert "--auto-resume=1" not in second
    assert tuple(second[second.index(SPEC.python) :]) == SPEC.command()
    assert ran.environment["GREETING"] == "good $(day) to $you"
    assert ran.environment["PYTHONPATH"] == SPEC.code


def test_a_preflight_that_refuses_ends_the_job(tmp_path: Path) -> None:
    ran = run_script(sbatch_script(SPEC), tmp_path, PREFLIGHT=str(ExitCode.STOP))
    assert ran.code == ExitCode.STOP
    assert len(ran.calls) == 1


@pytest.mark.parametrize("code", [ExitCode.DONE, ExitCode.STOP])
def test_a_job_that_is_done_or_hopeless_is_not_requeued(code: int, tmp_path: Path) -> None:
    ran = run_script(sbatch_script(SPEC), tmp_path, CODE=str(int(code)))
    assert ran.code == code
    assert not [call for call in ran.calls if call[0] == "scontrol"]


@pytest.mark.parametrize("code", [1, 2, 75, 137, 143])  # 1 and 2: Python or srun, when a file system is away
def test_any_other_end_requeues_it(code: int, tmp_path: Path) -> None:
    ran = run_script(sbatch_script(SPEC), tmp_path, CODE=str(code), SLURM_RESTART_COUNT="6")
    assert ran.calls[-1] == ["scontrol", "requeue", "7"]


def test_requeues_are_capped(tmp_path: Path) -> None:
    ran = run_script(sbatch_script(SPEC), tmp_path, CODE="75", SLURM_RESTART_COUNT="7")
    assert ran.code == 75
    assert ran.calls[-1][0] == "srun"
    assert "requeued 7 times after failures, the maximum" in ran.output


WALL_TIME = FailedAttempt(1, 0.0, Kind.WALL_TIME, 0, "received SIGUSR1", 0, 5)
PREEMPTED = Line(0.0, 1, 0, 8, Phase.END, why="job 7 received SIGTERM")
BOTH = (replace(WALL_TIME, kind=Kind.PREEMPTION, detail="rank 0 was terminated, and saved", job="7"), PREEMPTED)
"""Workers received the signal, too, and ended before the supervisor knew why."""
NOTICED = (replace(WALL_TIME, job="7"), replace(PREEMPTED, why="job 7 received SIGUSR1"))


@pytest.mark.fault("time slices that use up requeues")
@pytest.mark.guarantee("Only failures use up requeues and restarts: time slices, preemptions and stops do not")
@pytest.mark.parametrize(
    ("ledgers", "requeued"),
    [
        ([WALL_TIME] * 21, True),
        ([replace(WALL_TIME, job="7")] * 21, True),
        ([replace(WALL_TIME, job="6")] * 21, False),  # slices of a job that was submitted before this one
        ([replace(WALL_TIME, kind=Kind.PREEMPTION)] * 21, True),
        # Workers that somebody else told to end restart within the job.
        ([replace(WALL_TIME, kind=Kind.PREEMPTION, detail="rank 0 was terminated, and saved")] * 21, False),
        ([PREEMPTED] * 21, True),
        ([WALL_TIME] * 7 + [PREEMPTED] * 7, True),
        ([WALL_TIME] * 6 + [PREEMPTED] * 7, False),  # 7 failures among 20 restarts
        ([BOTH] * 14, True),
        ([BOTH] * 13, False),  # recorded in both ledgers, and counted once
        ([NOTICED] * 13, False),
        ([NOTICED] * 14, True),
        ([replace(WALL_TIME, kind=Kind.SOFTWARE)] * 21, False),
        ([replace(PREEMPTED, why="job 71 received SIGTERM")] * 21, False),
        ([replace(PREEMPTED, why=None)] * 21, False),
        ([], False),
    ],
)
def test_only_failures_count_as_requeues(ledgers: list[Any], requeued: bool, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for attempt, recorded in enumerate(ledgers, 1):
        for line in recorded if isinstance(recorded, tuple) else [recorded]:
            if isinstance(line, Line):
                append_line(phases_file(run, 0), str(replace(line, attempt=attempt)))
            else:
                append_line(run / FAILURES_FILE, json.dumps(asdict(replace(line, attempt=attempt))))
    ran = run_script(sbatch_script(spec(folder=str(run))), tmp_path / "notes", CODE="75", SLURM_RESTART_COUNT="20")
    assert (ran.calls[-1][0] == "scontrol") == requeued, ran.output


def test_a_sweep_is_one_array_of_which_each_element_runs_its_own_overrides(tmp_path: Path) -> None:
    runs = [spec(name=f"drive/{n}", folder=str(tmp_path / str(n)), overrides=(f"run.seed={n}",)) for n in range(3)]
    script = SlurmScheduler(partition="p5", at_once=2).render(runs, "drive", str(tmp_path / "job.log"))
    assert "array=0-2%2" in directives(script)
    assert "job-name=drive" in directives(script)
    for n, run in enumerate(runs):
        Path(run.folder).mkdir()
        ids = {"SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": str(n)}
        ran = run_script(script, tmp_path / f"notes-{n}", CODE="75", **ids)
        assert ran.overrides() == list(run.overrides)
        assert ran.calls[-1] == ["scontrol", "requeue", f"9_{n}"]
        assert "is requeued" in (Path(run.folder) / "job.log").read_text()


def test_a_sweep_over_what_is_asked_for_is_refused() -> None:
    with pytest.raises(SpecError, match="only the recipe can be swept"):
        sbatch_script(SPEC, spec(nodes=2))
