"""What an sbatch script asks for, and what it does when its job's workers end."""

from __future__ import annotations

from pathlib import Path

import pytest

from framework.launch.schedulers.sbatch import Placement, render
from framework.launch.spec import SpecError
from framework.launch.supervisor.restart import DONE, STOP
from tests.launch.bash import run_script
from tests.launch.specimens import PLACEMENT, SPEC, spec


def directives(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")]


def test_what_is_asked_for() -> None:
    assert directives(render([SPEC], PLACEMENT)) == [
        "partition=p5", "nodes=4", "ntasks-per-node=1", "gpus-per-node=8", "exclusive", "time=600",
        "signal=SIGUSR1@240", "requeue", "open-mode=append",
        "export=HOME,LANG,LOGNAME,PATH,SHELL,USER,COMET_API_KEY,RECORDINGS",
        "chdir=/shared/checkout", "job-name=drive/seed-1", "output=/shared/runs/drive/seed-1/job.log",
    ]  # fmt: skip


def test_directives_come_before_the_first_command() -> None:
    lines = render([SPEC], PLACEMENT).splitlines()
    assert lines[0] == "#!/bin/bash"
    assert not any(line.startswith("#SBATCH") for line in lines[lines.index("") :])


def test_no_gpus_without_an_accelerator() -> None:
    assert not [line for line in directives(render([spec(gpus=0)], PLACEMENT)) if "gpus" in line]


def test_jobs_may_share_a_node() -> None:
    assert "exclusive" not in directives(render([SPEC], Placement("p5", exclusive=False)))


@pytest.mark.parametrize("field", ["partition", "account", "qos", "reservation", "constraint"])
@pytest.mark.parametrize("value", ["a b", "a\n#SBATCH --x", "$(a)", "--a", "'", ""])
def test_placements_that_are_refused(field: str, value: str) -> None:
    with pytest.raises(SpecError, match=f"launch.{field}"):
        Placement(**{"partition": "p5", field: value})


def test_the_workers_start_once_the_preflight_of_all_nodes_has_passed(tmp_path: Path) -> None:
    ran = run_script(render([SPEC], PLACEMENT), tmp_path)
    first, second = ran.calls
    assert ran.code == 0, ran.said
    assert "framework.launch.preflight" in first
    assert "--auto-resume=1" not in second
    assert tuple(second[second.index(SPEC.python) :]) == SPEC.command()
    assert ran.environment["GREETING"] == "good $(day) to $you"
    assert ran.environment["PYTHONPATH"] == SPEC.code


def test_a_preflight_that_refuses_ends_the_job(tmp_path: Path) -> None:
    ran = run_script(render([SPEC], PLACEMENT), tmp_path, PREFLIGHT=str(STOP))
    assert ran.code == STOP
    assert len(ran.calls) == 1


@pytest.mark.parametrize("code", [DONE, STOP])
def test_a_job_that_is_done_or_hopeless_is_not_requeued(code: int, tmp_path: Path) -> None:
    ran = run_script(render([SPEC], PLACEMENT), tmp_path, CODE=str(code))
    assert ran.code == code
    assert not [call for call in ran.calls if call[0] == "scontrol"]


@pytest.mark.parametrize("code", [1, 2, 75, 137, 143])  # 1 and 2: Python or srun, when a file system is away
def test_any_other_end_requeues_it(code: int, tmp_path: Path) -> None:
    ran = run_script(render([SPEC], PLACEMENT), tmp_path, CODE=str(code), SLURM_RESTART_COUNT="6")
    assert ran.calls[-1] == ["scontrol", "requeue", "7"]


def test_requeues_are_capped(tmp_path: Path) -> None:
    ran = run_script(render([SPEC], PLACEMENT), tmp_path, CODE="75", SLURM_RESTART_COUNT="7")
    assert ran.code == 75
    assert ran.calls[-1][0] == "srun"
    assert "begun anew 7 times, which is the most allowed" in ran.said


def test_a_sweep_is_one_array_of_which_each_element_runs_its_own_words(tmp_path: Path) -> None:
    runs = [spec(name=f"drive/{n}", folder=str(tmp_path / str(n)), words=(f"run.seed={n}",)) for n in range(3)]
    script = render(runs, Placement("p5", at_once=2), "drive", str(tmp_path / "job.log"))
    assert "array=0-2%2" in directives(script)
    assert "job-name=drive" in directives(script)
    for n, run in enumerate(runs):
        Path(run.folder).mkdir()
        ids = {"SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": str(n)}
        ran = run_script(script, tmp_path / f"notes-{n}", CODE="75", **ids)
        assert ran.words() == list(run.words)
        assert ran.calls[-1] == ["scontrol", "requeue", f"9_{n}"]
        assert "begins anew" in (Path(run.folder) / "job.log").read_text()


def test_a_sweep_over_what_is_asked_for_is_refused() -> None:
    with pytest.raises(SpecError, match="only the recipe can be swept"):
        render([SPEC, spec(nodes=2)], PLACEMENT)
