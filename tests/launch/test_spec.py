"""A specification refuses what no scheduler would run, and is stored as it is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from framework.launch.spec import SpecError, load, local_spec
from framework.launch.supervisor.restart import RestartPolicy
from framework.launch.supervisor.watchdog import HangRules
from framework.recipe.renames import renames
from framework.run.layout import JOB_FILE
from tests.launch.specimens import SPEC, spec


def test_every_fault_is_reported_at_once() -> None:
    with pytest.raises(SpecError) as refused:
        spec(name="a b", folder="runs", nodes=0, secrets=("KEY=value",), environment=(("A-B", "1"),))
    assert [line.split(":")[0] for line in str(refused.value).splitlines()] == [
        "run.name", "folder", "launch.variables", "launch.secrets", "launch.nodes",
    ]  # fmt: skip


@pytest.mark.attack("rendering", "names of runs that leave their folder or are options", "refused")
@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", "../a", "a/../b", "-a", "a\n", "ä", "a;b", "$(a)", "a" * 201])
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(SpecError, match=r"run\.name"):
        spec(name=name)


@pytest.mark.parametrize("name", ["demo", "sft_drive-tiny", "demo/sweep-run.seed=0,a.b=1e-3"])
def test_names_that_recipes_and_sweeps_have(name: str) -> None:
    assert spec(name=name).name == name


def test_it_is_kept_in_the_folder(tmp_path: Path) -> None:
    job = spec(folder=str(tmp_path), overrides=("a='\n$(x)'", "ü"))
    job.save()
    assert load(tmp_path) == job


def test_files_of_older_trees_are_read(tmp_path: Path) -> None:
    job = spec(folder=str(tmp_path), scheduler="hyperpod", placement=(("namespace", "team"),))
    job.save()
    values = json.loads((tmp_path / JOB_FILE).read_text())
    arguments = renames().arguments["framework.launch.supervisor.restart.RestartPolicy"]
    (attempts,) = (name for name, today in arguments.items() if today == "max_attempts_without_progress")
    new = ("overrides", "hang", "restart", "exclusive", "scheduler")
    old = {key: value for key, value in values.items() if key not in new} | {
        "words": list(job.overrides),
        "supervision": ["--save-s=150", "--floor-s=90.0", "--restarts=7", f"--{attempts}=4", "--longest-s=60"],
        "placement": [["operator", "hyperpod"], ["namespace", "team"]],
    }
    (tmp_path / JOB_FILE).write_text(json.dumps(old))
    read = load(tmp_path)
    assert read.hang == HangRules(floor_s=90.0)
    assert read.restart == RestartPolicy(restarts=7, max_attempts_without_progress=4, max_back_off_s=60.0)
    assert isinstance(read.restart.restarts, int)
    assert read == replace(job, restart=read.restart)
    (tmp_path / JOB_FILE).write_text(json.dumps({**old, "placement": [["partition", "p5"]]}))
    assert load(tmp_path).scheduler == "slurm"


def test_settings_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(SpecError) as refused:
        spec(hang=HangRules(floor_s="5"), restart=RestartPolicy(back_off_s=float("nan")))  # type: ignore[arg-type]
    assert str(refused.value).splitlines() == [
        "launch.hang.floor_s: '5' must be a finite number",
        "launch.restart.back_off_s: nan must be a finite number",
    ]


def test_a_run_that_was_not_submitted_may_lie_anywhere(tmp_path: Path) -> None:
    job = local_spec(tmp_path / "my runs" / "a b")
    assert job.folder == str(tmp_path / "my runs" / "a b")
    assert (job.scheduler, job.nodes, job.save_s) == ("local", 1, 600.0)


def test_workers_may_save_until_shortly_before_the_notice_is_over() -> None:
    assert [spec(notice_s=seconds).save_s for seconds in (0, 90, 240)] == [10.0, 10.0, 150.0]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"job\.json: not there; the run was not submitted"):
        load(tmp_path)
    spec(folder=str(tmp_path)).save()
    file = tmp_path / JOB_FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), "colour": "red"}))
    with pytest.raises(SpecError, match=r"job\.json: .*colour.*; submit the run again"):
        load(tmp_path)


def test_the_snapshot_comes_first_and_the_working_directory_not_at_all() -> None:
    variables = SPEC.variables()
    assert variables["PYTHONPATH"] == SPEC.code
    assert variables["PYTHONSAFEPATH"] == "1"


def test_the_supervisor_gets_the_overrides_behind_two_dashes() -> None:
    command = SPEC.command()
    assert command[:3] == (SPEC.python, "-m", "framework.launch.supervisor.main")
    assert command[command.index("--") + 1 :] == SPEC.overrides
