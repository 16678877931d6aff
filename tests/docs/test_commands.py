"""Every fenced command of README and docs runs, or says in front of its fence why no test runs it."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from framework.__main__ import main
from tests.conftest import RECORDINGS
from tests.dialogues import written_conversations
from tests.docs.documents import CODE, PLAIN, ROOT, SHELL, Command, Treatment, commands, documents, fences
from tests.processes import program, run

FINISHED_RUN = ROOT / "tests" / "fixtures" / "old_tree" / "runs" / "stopped_in_rl"
COMMANDS = commands()
FIRST_READ = {"README.md", "docs/quickstart.md"}
SMALL = {"--scenes": "8", "--workers": "1"}
"""Options of tools whose values the test makes small."""
FEW_SCENES = [
    f"sources.{name}.scenes={count}"
    for name, count in {"world_train": 48, "world_hard": 32, "world_held_out": 4, "world_zero_shot": 4}.items()
]
"""What a run draws from and is evaluated on."""


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the documents presuppose: a finished run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SBATCH_PARTITION", "gpu")
    shutil.copytree(FINISHED_RUN, tmp_path / "outputs" / "runs" / "demo")
    shutil.copytree(FINISHED_RUN, tmp_path / "outputs" / "runs" / "supervised")
    written_conversations(tmp_path / "conversations", rows=4)
    (tmp_path / "recordings").symlink_to(RECORDINGS if RECORDINGS.is_dir() else tmp_path, target_is_directory=True)
    return tmp_path


def _of(treatment: Treatment) -> list[Command]:
    return [command for command in COMMANDS if command.treatment is treatment]


def _blocks(treatment: Treatment) -> list[list[Command]]:
    return [
        list(block) for _, block in groupby(_of(treatment), lambda command: (command.fence.file, command.fence.line))
    ]


def _read_first(commands: Iterable[Command]) -> list[ParameterSet]:
    """Those that a newcomer reads first run in the fast suite, the others in the slow one."""
    return [
        pytest.param(command, marks=() if command.fence.file in FIRST_READ else pytest.mark.slow, id=str(command))
        for command in commands
    ]


@pytest.mark.parametrize("command", _read_first(_of(Treatment.RUN)))
@pytest.mark.fast_cases(3)
def test_it_runs(command: Command, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = list(command.words[3:])
    if "launch.dry_run=true" in words:
        words += ["launch.uncommitted=true", "launch.limits.free_gib=1"]  # a developer's tree has changes
    assert main(words) == 0, capsys.readouterr().err
    assert capsys.readouterr().out


def _overrides(command: Command) -> tuple[str, ...]:
    """The words of a recipe: those after `framework`, of a sweep the first value of each. A run of its own trains."""
    assert "framework" in command.words, f"{command}: no test knows how to run it; mark it: <!-- not run: why -->"
    words = command.words[command.words.index("framework") + 1 :]
    if "-m" in words:
        swept = [word for word in words if word != "-m" and not word.startswith("hydra")]
        words = tuple(word.partition("=")[0] + "=0.001" if "(" in word else word.partition(",")[0] for word in swept)
    return words if any(word.startswith("task.run=") for word in words) else (*words, "run.name=new")


def _checked() -> list[ParameterSet]:
    """The commands to check, each once."""
    once = {_overrides(command): command for command in reversed(_of(Treatment.CHECKED))}
    return _read_first(once.values())


@pytest.mark.parametrize("command", _checked())
@pytest.mark.fast_cases(1)
def test_what_trains_is_checked(command: Command, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", *_overrides(command)]) == 0, capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("block", _blocks(Treatment.RUN_SLOW), ids=lambda block: str(block[0]))
def test_it_runs_in_a_while(block: list[Command], workplace: Path) -> None:
    """The commands of a block run one after another, as one needs what another wrote."""
    for command in block:
        module, *words = command.words[2:]
        words = [SMALL.get(before, word) for before, word in zip((module, *words), words, strict=False)]
        if module == "framework" and "plan" not in words:
            words += ["curriculum.max_steps_per_stage=1", *FEW_SCENES]
        done = run(program(module, *words, folder=workplace), environment={"PYTHONPATH": str(ROOT)})
        assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"


def test_every_block_is_run_or_says_why_not() -> None:
    for file in documents():
        for fence in fences(file):
            place = f"{fence.file}:{fence.line}"
            assert fence.language in SHELL | CODE | PLAIN, (
                f"{place}: language {fence.language!r} is none that tests know"
            )
            if fence.language in CODE and fence.reason is None:
                assert fence.title or fence.file.startswith("docs/howto/"), f"{place}: nothing runs it; mark it"


def test_commands_are_counted() -> None:
    counts = Counter(command.treatment for command in COMMANDS)
    report = ", ".join(f"{counts[treatment]} {treatment}" for treatment in Treatment)
    print(f"\n{len(COMMANDS)} documented commands: {report}")
    for command in _of(Treatment.NOT_RUN):
        print(f"  {command}: {command.fence.reason}")
    assert counts[Treatment.RUN] + counts[Treatment.RUN_SLOW] + counts[Treatment.CHECKED] > counts[Treatment.NOT_RUN]
