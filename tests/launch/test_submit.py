"""`launch=` on any recipe: what is submitted, what is stored, what is printed, and what is refused."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from framework.__main__ import main
from framework.launch import runs
from framework.launch.eval_jobs.companion import companion_jobs
from framework.launch.spec import load
from framework.launch.submissions import record_submission, submissions
from framework.launch.submit import inner_overrides
from framework.launch.trial_job import TrialLink
from framework.recipe.catalogue import Catalogue
from tests.launch.conftest import REPOSITORY, Cluster
from tests.launch.specimens import spec

POD = ["launch.namespace=team", "launch.image=registry/training:1", "launch.claim=fsx", "launch.mount=/"]


@pytest.fixture
def launch(checkout: Path, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The command, run in the checkout; runs go to `tmp_path`/runs."""
    monkeypatch.chdir(checkout)

    def run(*arguments: str) -> int:
        paths = [f"paths.runs={tmp_path}/runs"] if any(each.startswith("recipe=") for each in arguments) else []
        return main([*arguments, *paths], Catalogue(checkout))

    return run


def test_a_run_is_submitted_and_the_command_returns(launch, cluster: Cluster, tmp_path: Path, capsys) -> None:
    assert launch("recipe=toy", "launch=slurm", "run.seed=3") == 0
    folder = tmp_path / "runs" / "toy"
    assert capsys.readouterr().out.splitlines() == [str(folder), "job 41"]
    job = load(folder)
    assert (job.nodes, job.devices, job.gpus) == (2, 2, 0)
    assert "run.seed=3" in job.overrides
    assert cluster.read("script") == (folder / "job.sbatch").read_text()
    assert (folder / "code" / "plugins" / "toys" / "toy.py").is_file()
    (entry,) = submissions(folder)
    assert (entry["scheduler"], entry["job"]) == ("slurm", "41")


def test_checkpoints_of_a_run_have_jobs_of_their_own_and_those_of_a_trial_have_none(launch, tmp_path: Path) -> None:
    trains, folder = (
        ["recipe=toy", "launch=slurm", "+task.curriculum={}", "+task.evals={}"],
        tmp_path / "runs" / "trial",
    )
    assert launch(*trains) == 0
    assert load(tmp_path / "runs" / "toy").watched == str(tmp_path / "runs" / "toy")
    TrialLink("study.journal", "toy", trial=0, metric="loss", prune=True).save(folder)
    assert launch(*trains, "run.name=trial") == 0
    assert load(folder).watched is None


def test_inside_of_the_job_the_recipe_runs_there_and_in_its_folder(tmp_path: Path) -> None:
    given = ["recipe=a", "launch=slurm", "launch.nodes=2", "+launch.x=1", "~launch.y", "model.launch=1"]
    overrides = inner_overrides(given, tmp_path, 4)
    assert overrides == (
        "recipe=a", "model.launch=1", "launch=local", f"run.folder='{tmp_path}'", "parallel.devices=4",
    )  # fmt: skip


def test_a_dry_run_prints_and_leaves_no_trace(launch, cluster: Cluster, tmp_path: Path, capsys) -> None:
    assert launch("recipe=toy", "launch=slurm", "launch.dry_run=true") == 0
    assert "#SBATCH --partition=local" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
    assert not cluster.read("script")


def test_all_problems_are_reported_at_once_and_nothing_is_submitted(
    launch, cluster: Cluster, tmp_path: Path, capsys
) -> None:
    asked = ["launch.partition=nowhere", "launch.nodes=17", "launch.notice_s=3600", "launch.secrets=[NOT_SET_HERE]"]
    assert launch("recipe=toy", "launch=slurm", *asked) == 2
    printed = capsys.readouterr().err
    for finding in (
        "partition: nowhere: no such partition; there are: closed, local",
        "nodes: 17 are asked for, and 16 allowed",
        "notice_s: the warning would come before the job",
        "secrets: NOT_SET_HERE is not set here",
    ):
        assert finding in printed
    assert not cluster.read("script")
    assert not (tmp_path / "runs").exists()


def test_uncommitted_changes_are_refused_or_taken_along(launch, checkout: Path, tmp_path: Path, capsys) -> None:
    (checkout / "framework" / "fresh.py").write_text("")
    assert launch("recipe=toy", "launch=slurm") == 2
    assert "not committed: framework/fresh.py" in capsys.readouterr().err
    assert launch("recipe=toy", "launch=slurm", "launch.uncommitted=true") == 0
    assert (tmp_path / "runs" / "toy" / "code" / "framework" / "fresh.py").is_file()
    assert "fresh.py" in (tmp_path / "runs" / "toy" / "job.diff").read_text()


def test_a_run_whose_job_is_active_is_not_submitted_again(launch, cluster: Cluster, capsys) -> None:
    cluster.queue("40 toy\n")
    assert launch("recipe=toy", "launch=slurm") == 2
    assert "toy is submitted already, as job 40" in capsys.readouterr().err
    assert not cluster.read("script")


def test_what_slurm_refuses_is_reported_before(launch, cluster: Cluster, capsys) -> None:
    (cluster.state / "refuse").write_text("allocation failure: Requested node configuration is not available")
    assert launch("recipe=toy", "launch=slurm") == 2
    assert "Requested node configuration is not available" in capsys.readouterr().err


def test_a_sweep_is_one_job_array(launch, cluster: Cluster, tmp_path: Path, capsys) -> None:
    assert launch("recipe=toy", "launch=slurm", "launch.at_once=2", "run.seed=0,1,2", "-m") == 0
    folders = [tmp_path / "runs" / "toy" / f"sweep-run.seed={seed}" for seed in range(3)]
    assert capsys.readouterr().out.splitlines() == [*map(str, folders), "job 41"]
    assert "#SBATCH --array=0-2%2" in cluster.read("script")
    for number, folder in enumerate(folders):
        assert f"run.seed={number}" in load(folder).overrides
        assert submissions(folder)[0]["job"] == f"41_{number}"
        assert load(folder).code == str(tmp_path / "runs" / "toy" / "code")


def test_stages_are_jobs_that_wait_for_one_another(launch, cluster: Cluster, tmp_path: Path, capsys) -> None:
    stages = ["+curriculum.stages={broad:1,hard:2,rl:3}", "+task.stages=${curriculum.stages}"]
    assert launch("recipe=toy", "launch=slurm", "launch.by_stage=true", *stages) == 0
    folder = tmp_path / "runs" / "toy"
    assert capsys.readouterr().out.splitlines() == [str(folder), "job 41 42 43"]
    assert [entry["job"] for entry in submissions(folder)] == ["41", "42", "43"]
    asked = [line for line in cluster.read("sbatch").splitlines() if "test-only" not in line]
    assert [("afterok" in line and line.split("afterok:")[1][:2]) for line in asked] == [False, "41", "42"]
    scripts = [(folder / f"job.{name}sbatch").read_text() for name in ("broad.", "hard.", "")]
    left_out = [[name for name in ("hard", "rl") if f"~curriculum.stages.{name}" in script] for script in scripts]
    assert left_out == [["hard", "rl"], ["rl"], []]
    assert "~" not in " ".join(load(folder).overrides)


def test_a_recipe_without_stages_has_none_to_submit_by(launch, capsys) -> None:
    assert launch("recipe=toy", "launch=slurm", "launch.by_stage=true") == 2
    assert "launch.by_stage: the recipe has no curriculum" in capsys.readouterr().err


def test_variables_that_the_recipe_reads_are_passed_by_name(launch, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TOY_COLOUR", "green")
    assert launch("recipe=toy", "launch=slurm") == 0
    folder = tmp_path / "runs" / "toy"
    assert load(folder).passed == ("TOY_COLOUR",)
    assert "green" not in (folder / "job.sbatch").read_text()


@pytest.mark.parametrize("kind", ["pytorchjob", "hyperpod"])
def test_a_run_goes_to_kubernetes(kind: str, launch, cluster: Cluster, tmp_path: Path) -> None:
    assert launch("recipe=toy", f"launch={kind}", *POD) == 0
    manifest = yaml.safe_load(cluster.read("manifest"))
    assert manifest["kind"].lower() == ("hyperpodpytorchjob" if kind == "hyperpod" else kind)
    assert submissions(tmp_path / "runs" / "toy")[0]["job"] == f"team/{manifest['kind'].lower()}/toy"


def test_a_pod_takes_the_variables_that_the_recipe_reads(launch, cluster: Cluster, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TOY_COLOUR", "$(green)")
    assert launch("recipe=toy", "launch=pytorchjob", *POD) == 0
    assert {"name": "TOY_COLOUR", "value": "$$(green)"} in container(cluster)["env"]
    assert load(tmp_path / "runs" / "toy").passed == ()


@pytest.mark.fault("RECORDINGS in a pod")
def test_a_folder_that_no_pod_sees_is_reported_where_it_is_read_with_a_remedy_that_works(
    launch, cluster: Cluster, monkeypatch, tmp_path: Path, capsys
) -> None:
    monkeypatch.setenv("TOY_COLOUR", "/elsewhere/green")
    pod = [*POD[:-1], "launch.mount=/shared", "launch.dry_run=true"]
    assert launch("recipe=toy", "launch=pytorchjob", *pod) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "TOY_COLOUR" in line]
    assert line.startswith("recipes/toy.yaml:5 task.colour: TOY_COLOUR is /elsewhere/green, which is not below")
    assert "launch.variables.TOY_COLOUR=FOLDER" in line
    for plus in ("", "+"):
        given = [f"{plus}launch.variables.TOY_COLOUR=/shared/green", "launch.variables.OTHER=b"]
        launch("recipe=toy", "launch=pytorchjob", *pod, *given)
        printed = capsys.readouterr()
        assert "TOY_COLOUR" not in printed.err
        assert "value: /shared/green" in printed.out
    Path("red").mkdir()
    for elsewhere in ("/elsewhere/red", "/shared/../elsewhere/red", "red", f"../{Path.cwd().name}/red"):
        launch("recipe=toy", "launch=pytorchjob", *pod, f"launch.variables.TOY_COLOUR={elsewhere}")
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "TOY_COLOUR is" in line]
        assert f"launch.variables.TOY_COLOUR: TOY_COLOUR is {elsewhere}, which is not below" in line
    monkeypatch.setenv("TOY_COLOUR", "/shared/green")
    launch("recipe=toy", "launch=pytorchjob", *pod)
    assert "TOY_COLOUR" not in capsys.readouterr().err


@pytest.mark.fault("RECORDINGS in a pod")
def test_a_folder_that_the_recipe_does_not_use_is_no_problem(launch, monkeypatch, capsys) -> None:
    monkeypatch.setenv("NEVER_USED", "/elsewhere")
    pod = [*POD[:-1], "launch.mount=/shared", "launch.dry_run=true"]
    launch("recipe=toy", "launch=pytorchjob", *pod, "+paths.other=${oc.env:NEVER_USED}")
    assert "NEVER_USED is" not in capsys.readouterr().err


def test_a_finding_names_the_file_of_its_setting(launch, capsys) -> None:
    assert launch("recipe=toy", "launch=pytorchjob", *POD, "launch.notice_s=99999") == 2
    assert launch("recipe=toy", "launch=slurm", "launch.secrets=[NOT_SET_HERE]", "launch.minutes=20000") == 2
    printed = capsys.readouterr().err
    assert "command line launch.notice_s: " in printed
    assert "command line launch.secrets: NOT_SET_HERE" in printed
    assert "command line launch.minutes: 20000" in printed


def test_a_finding_on_a_setting_that_no_file_sets_names_the_scheduler_s_file(launch, capsys) -> None:
    assert launch("recipe=toy", "launch=slurm", "launch.dry_run=true", "parallel.accelerator=gpu") == 0
    assert re.search(r"warning: conf/launch/slurm.yaml:\d+ launch.instance: ", capsys.readouterr().err)


def container(cluster: Cluster) -> dict[str, Any]:
    manifest = yaml.safe_load(cluster.read("manifest"))
    pod = manifest["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
    return pod["containers"][0]


def test_a_queue_that_does_not_exist_is_reported(launch, capsys) -> None:
    assert launch("recipe=toy", "launch=pytorchjob", *POD, "launch.queue=nowhere") == 2
    assert "nowhere: no such queue in team; there are: team-localqueue, other" in capsys.readouterr().err


class TestRuns:
    """The verbs on submitted runs."""

    @pytest.fixture(autouse=True)
    def submitted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
        sweep = tmp_path / "runs" / "toy"
        for number in range(2):
            folder = sweep / f"sweep-run.seed={number}"
            folder.mkdir(parents=True)
            spec(folder=str(folder), name=f"toy/{folder.name}").save()
            record_submission(folder, "slurm", f"41_{number}", sweep / "job.sbatch")
        (sweep / "job.sbatch").write_text("the script")
        self.folder = folder
        self.name = f"toy/{folder.name}"

    def test_status(self, launch, cluster: Cluster, capsys) -> None:
        beat = "heartbeat run=toy attempt=1 stage=broad step=7 loss=1.25 tokens_per_s=1.0 step_s=0.5"
        (self.folder / "job.log").write_text(f"{beat}\nother\n")
        cluster.queue("PENDING Resources\n")
        assert launch("status", self.name) == 0
        assert capsys.readouterr().out.splitlines()[1].split() == [
            str(self.folder), "41_1", "PENDING", "(Resources)", "0", "7", "1.25",
        ]  # fmt: skip
        cluster.queue("")
        (self.folder / "attempts.jsonl").write_text(json.dumps({"event": "end", "outcome": "finished"}) + "\n")
        assert launch("status") == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 3
        assert "finished" in lines[2]
        assert "not started" in lines[1]

    def test_a_run_that_cannot_be_read_does_not_hide_the_others(self, launch, cluster: Cluster, capsys) -> None:
        cluster.queue("PENDING Resources\n")
        (self.folder / "job.json").write_text('{"cut')
        other = self.folder.parent / "interrupted"
        spec(folder=str(other), name="toy/interrupted").save()
        assert launch("status") == 0
        printed = capsys.readouterr()
        assert [line.split()[1] for line in printed.out.splitlines()] == ["job", "41_0"]
        assert "job.json: " in printed.err
        assert "interrupted: its submission was interrupted" in printed.err
        sound = f"toy/{self.folder.with_name('sweep-run.seed=0').name}"
        assert launch("status", self.name, sound) == 2
        assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["job", "41_0"]

    @pytest.mark.fault("a stop that counts as a failure")
    def test_a_run_that_cannot_be_read_keeps_no_other_from_being_stopped(
        self, launch, cluster: Cluster, capsys
    ) -> None:
        cluster.queue("41_0\n41_1\n")
        damaged = self.folder.with_name("sweep-run.seed=0")
        (damaged / "job.json").write_text('{"cut')
        assert launch("stop", str(damaged), self.name) == 2
        assert cluster.read("scancel") == "41_1\n"
        assert "job.json: " in capsys.readouterr().err

    @pytest.mark.fault("status of runs with evaluations")
    def test_a_run_may_be_called_evaluations(self, launch, cluster: Cluster, capsys) -> None:
        folder = self.folder.parents[1] / "evaluations" / "mine"
        spec(folder=str(folder), name="evaluations/mine").save()
        record_submission(folder, "slurm", "42", folder / "job.sbatch")
        cluster.queue("")
        assert launch("status") == 0
        assert "evaluations/mine" in capsys.readouterr().out
        assert launch("status", "x" * 300) == 2
        assert "no run 'xxx" in capsys.readouterr().err

    def test_a_placement_that_the_scheduler_does_not_take_is_reported(self, launch, capsys) -> None:
        spec(folder=str(self.folder), name=self.name, placement=(("hall", "north"),)).save()
        assert launch("stop", self.name) == 2
        assert "placement: " in capsys.readouterr().err

    def test_logs(self, launch, capsys) -> None:
        (self.folder / "job.log").write_text("".join(f"line {n}\n" for n in range(100)))
        assert launch("logs", str(self.folder)) == 0
        assert capsys.readouterr().out.splitlines() == [f"line {n}" for n in range(50, 100)]

    @pytest.mark.fault("status of runs with evaluations")
    def test_evaluations_of_a_run_are_no_runs_but_can_be_looked_at(self, launch, cluster: Cluster, capsys) -> None:
        jobs = companion_jobs(self.folder)
        folder = self.folder / "evaluations" / "step-00000005" / "held_out"
        assert jobs.submit("evaluate-1", ["recipe=evaluate"], folder) == "41"
        assert launch("status") == 0
        assert len(capsys.readouterr().out.splitlines()) == 3
        cluster.queue("41\n")
        assert launch("stop", str(folder)) == 0
        assert cluster.read("scancel") == "41\n"

    def test_jobs_on_this_machine_are_looked_at_in_the_same_way(
        self, launch, capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(REPOSITORY)  # whose framework the job runs
        jobs, folder = companion_jobs(tmp_path / "run"), tmp_path / "own"
        jobs.submit("first", ["--help"], folder)
        limit = time.monotonic() + 60
        while jobs.find("first"):
            assert time.monotonic() < limit
            time.sleep(0.05)
        assert launch("logs", str(folder)) == 0
        printed = (folder / "job.log").read_text().splitlines()
        assert any("run the recipe's task" in line for line in printed)
        assert capsys.readouterr().out.splitlines() == printed[-50:]
        assert launch("status", str(folder)) == 0
        assert capsys.readouterr().out.splitlines()[1].split()[1:4] == ["first", "not", "started"]
        assert launch("resume", str(folder)) == 0
        assert launch("stop", str(folder)) == 0
        assert capsys.readouterr().out.splitlines()[-1].endswith("own: job first is stopping")

    def test_stop(self, launch, cluster: Cluster) -> None:
        cluster.queue("41_0\n41_1\n")
        assert launch("stop", self.name) == 0
        assert cluster.read("scancel") == "41_1\n"

    def test_resume_submits_the_one_run_as_it_was(self, launch, cluster: Cluster) -> None:
        assert launch("resume", self.name) == 0
        assert cluster.read("sbatch").splitlines()[-1] == "--parsable --array=1"
        assert cluster.read("script") == "the script"
        assert [entry["job"] for entry in submissions(self.folder)] == ["41_1", "41_1"]

    def test_an_active_run_is_not_resumed(self, launch, cluster: Cluster, capsys) -> None:
        cluster.queue("41_1\n")
        assert launch("resume", self.name) == 2
        assert "its job 41_1 waits or runs; stop it first" in capsys.readouterr().err

    @pytest.mark.parametrize("verb", ["status", "logs", "stop", "resume"])
    def test_a_run_that_was_not_submitted_is_named_with_the_nearest(self, verb: str, launch, capsys) -> None:
        assert launch(verb, "toy/sweep-run.seed=7") == 2
        assert "(did you mean toy/sweep-run.seed=" in capsys.readouterr().err
