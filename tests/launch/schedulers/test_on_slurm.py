"""Launching on a real Slurm of two nodes: what it accepts, what reaches a job, requeueing, and a whole run."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from framework.launch.eval_jobs.companion import companion_jobs
from framework.launch.eval_jobs.watcher import checkpoints_of
from framework.launch.schedulers.slurm import SlurmError, SlurmScheduler, validate
from framework.launch.spec import RunSpec
from framework.run.evaluations import Evaluation
from framework.run.heartbeat import parse_heartbeat
from tests.launch.conftest import NEEDS_SLURM, REPOSITORY, commit, git
from tests.launch.specimens import sbatch_script, spec
from tools.slurm import PARTITION, LocalSlurm

pytestmark = [pytest.mark.slow, NEEDS_SLURM]
SLURM = SlurmScheduler(partition=PARTITION)
INTERPRETER = """\
#!/bin/bash
case " $* " in *' framework.launch.preflight '*) exit 0 ;; esac
ran=$SLURMD_NODENAME-${SLURM_RESTART_COUNT:-0}
printf '%s\\0' "$SLURMD_NODENAME" "$GREETING" "$@" > {folder}/ran-$ran
exit {code}
"""
"""Stands in for Python and records its arguments."""
NASTY = ("a='$(touch broken)'", "b=`id`;\n#SBATCH --nodes=9", 'c="', "d=${HOME}", "e=*", "", "--", "ü 🚗")


def job(tmp_path: Path, code: int = 0, **changes: object) -> RunSpec:
    """A job of two nodes, run by a stand-in for Python that ends with `code`."""
    python = tmp_path / "python"
    python.write_text(INTERPRETER.replace("{folder}", shlex.quote(str(tmp_path))).replace("{code}", str(code)))
    python.chmod(0o755)
    asked = {"nodes": 2, "devices": 2, "gpus": 0, "minutes": 10, "requeues": 1, "directory": str(tmp_path)}
    return spec(**{"folder": str(tmp_path), "python": str(python), "name": tmp_path.name, **asked, **changes})


def test_slurm_accepts_what_is_rendered(real_cluster: LocalSlurm, tmp_path: Path) -> None:
    one = job(tmp_path)
    other = job(tmp_path, name=f"{tmp_path.name}/2")
    for script in (
        sbatch_script(one, scheduler=SLURM),
        sbatch_script(job(tmp_path, exclusive=False), scheduler=SLURM),
        SlurmScheduler(partition=PARTITION, at_once=1).render([one, other], "sweep", f"{tmp_path}/job.log"),
    ):
        assert "to start at" in validate(script)
    with pytest.raises(SlurmError, match=r"[Nn]ode count|Requested node configuration"):
        validate(sbatch_script(job(tmp_path, nodes=3), scheduler=SLURM))


def test_overrides_reach_every_node_as_they_were_written(real_cluster: LocalSlurm, tmp_path: Path) -> None:
    asked = job(tmp_path, overrides=NASTY, environment=(("GREETING", "$(day) '`"),))
    number = SLURM.submit(sbatch_script(asked, scheduler=SLURM))
    assert real_cluster.wait_for(number, ["COMPLETED", "FAILED"], 60) == "COMPLETED"
    for node in ("n1", "n2"):
        there, greeting, *arguments = (tmp_path / f"ran-{node}-0").read_text().split("\0")[:-1]
        assert (there, greeting) == (node, "$(day) '`")
        assert arguments[arguments.index("--") + 1 :] == list(NASTY)
    assert not (tmp_path / "broken").exists()


@pytest.mark.guarantee("A failed or preempted job is requeued as often as it may be")
def test_a_job_is_requeued_as_often_as_it_may(real_cluster: LocalSlurm, tmp_path: Path) -> None:
    asked = job(tmp_path, code=75)
    number = SLURM.submit(sbatch_script(asked, scheduler=SLURM))
    assert SLURM.find(asked.name) == number
    assert SLURM.is_active(number)
    assert real_cluster.wait_for(number, ["COMPLETED", "FAILED"], 120) == "FAILED"
    assert sorted(file.name for file in tmp_path.glob("ran-*")) == ["ran-n1-0", "ran-n1-1", "ran-n2-0", "ran-n2-1"]
    log = (tmp_path / "job.log").read_text()
    assert log.count("and is requeued") == 1
    assert "requeued 1 times after failures, the maximum" in log
    assert SLURM.find(asked.name) is None
    assert not SLURM.is_active(number)


def test_companion_jobs_wait_for_others_and_are_found_by_name(real_cluster: LocalSlurm, tmp_path: Path) -> None:
    job(tmp_path, placement=(("partition", PARTITION),)).save()
    jobs = companion_jobs(tmp_path)
    first = jobs.submit("companion/first", ["a=1"], tmp_path / "first")
    second = jobs.submit("companion/second", ["a=2"], tmp_path / "second", after=[first])
    assert jobs.find("companion/second") == second
    assert jobs.find("companion/third") is None
    real_cluster.wait_for(second, ["COMPLETED"], 60)
    assert jobs.find("companion/second") is None
    assert (tmp_path / "second" / "job.json").is_file()


@pytest.mark.timeout(900)
def test_a_run_of_two_nodes_and_two_ranks_each(real_cluster: LocalSlurm, recordings: Path, tmp_path: Path) -> None:
    """A supervised run at its smallest, as the command line submits it."""
    pytest.importorskip("framework.launch.supervisor.main")
    checkout = tmp_path / "checkout"
    for part in ("conf", "recipes", "plugins", "framework"):
        shutil.copytree(REPOSITORY / part, checkout / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / ".gitignore", checkout)
    git(checkout, "init", "--quiet")
    sha = commit(checkout, "first")
    small = [
        "curriculum.max_steps_per_stage=4",
        "checkpoint.every=2",
        "eval_defaults.batch_size=4",
        "parallel.mesh.shard=4",
    ]
    words = ["recipe=sft_drive", "scale=tiny", "launch=slurm", f"paths.runs={tmp_path}/runs", *small]
    done = subprocess.run(
        [sys.executable, "-m", "framework", *words],
        cwd=checkout, env={**os.environ, "RECORDINGS": str(recordings)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder, number = done.stdout.split("\n")[0], done.stdout.split("job ")[1].strip()
    real_cluster.wait_for(number, ["COMPLETED", "FAILED"], 800)
    log = Path(folder, "job.log").read_text()
    assert real_cluster.state_of(number) == "COMPLETED", log[-3000:]
    beats = [beat for line in log.splitlines() if (beat := parse_heartbeat(line))]
    assert sorted(beat.step for beat in beats) == [1, 1, 2, 2, 3, 3, 4, 4]
    assert json.loads(Path(folder, "code.json").read_text())["sha"] == sha
    assert "drive" in json.loads(Path(folder, "results.json").read_text())
    evaluated_once_each(real_cluster, Path(folder), steps=[2, 4])


def evaluated_once_each(cluster: LocalSlurm, run: Path, steps: Sequence[int]) -> None:
    """Every checkpoint of `steps` was evaluated by one job of its own, and the best is marked."""
    checkpoints = checkpoints_of(run)
    for step in steps:
        evaluation = Evaluation(run, step, checkpoints[step].hash, "recordings")
        (submitted,) = evaluation.folder.glob("recordings.submitted-*.json")
        number = json.loads(submitted.read_text())["number"]
        log = evaluation.folder / evaluation.suite / "job.log"
        assert cluster.wait_for(number, ["COMPLETED", "FAILED"], 400) == "COMPLETED", log.read_text()[-3000:]
        assert evaluation.results() is not None
    assert json.loads((run / "best.json").read_text())["step"] in steps
