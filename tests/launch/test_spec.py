"""A specification refuses what no launcher would run, and is kept as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from framework.launch.spec import SpecError, load
from framework.run.layout import JOB_FILE
from tests.launch.specimens import SPEC, spec


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(SpecError) as refused:
        spec(name="a b", folder="runs", nodes=0, secrets=("KEY=value",), environment=(("A-B", "1"),))
    assert [line.split(":")[0] for line in str(refused.value).splitlines()] == [
        "run.name", "folder", "launch.variables", "launch.secrets", "launch.nodes",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", "../a", "a/../b", "-a", "a\n", "ä", "a;b", "$(a)", "a" * 201])
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(SpecError, match=r"run\.name"):
        spec(name=name)


@pytest.mark.parametrize("name", ["demo", "sft_drive-tiny", "demo/sweep-run.seed=0,a.b=1e-3"])
def test_names_that_recipes_and_sweeps_have(name: str) -> None:
    assert spec(name=name).name == name


def test_it_is_kept_in_the_folder(tmp_path: Path) -> None:
    kept = spec(folder=str(tmp_path), words=("a='\n$(x)'", "ü"))
    kept.save()
    assert load(tmp_path) == kept


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"job\.json: not there; the run was not submitted"):
        load(tmp_path)
    spec(folder=str(tmp_path)).save()
    file = tmp_path / JOB_FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), "colour": "red"}))
    with pytest.raises(SpecError, match=r"job\.json: .*colour.*; submit the run anew"):
        load(tmp_path)


def test_the_snapshot_comes_first_and_the_working_directory_not_at_all() -> None:
    variables = SPEC.variables()
    assert variables["PYTHONPATH"] == SPEC.code
    assert variables["PYTHONSAFEPATH"] == "1"


def test_the_supervisor_gets_the_words_behind_two_dashes() -> None:
    command = SPEC.command()
    assert command[:3] == (SPEC.python, "-m", "framework.launch.supervisor.main")
    assert command[command.index("--") + 1 :] == SPEC.words
