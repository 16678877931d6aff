"""The review of a branch: differences with their lines, problems, signatures; nothing of the head is executed."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from tests.processes import REPOSITORY
from tools.review import __main__ as command
from tools.review.__main__ import main
from tools.review.comment import new_faults

Branch = Callable[[str, dict[str, str]], str]
GIT = ("-c", "user.name=tester", "-c", "user.email=tester@example.invalid")
RECIPES = ("sft_broad", "sft_quality", "rl_dapo", "supervised", "curriculum", "demo")
"""The recipes of the repository: those that the branches change, derive from or list. Each takes a second to read."""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This tree as the main branch of a repository of its own."""
    folder = tmp_path_factory.mktemp("review") / "repository"
    listed = subprocess.run(
        ["git", "-C", str(REPOSITORY), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        source = REPOSITORY / name
        if source.is_file() and (
            name.startswith(("framework/", "conf/", "plugins/")) or name in {f"recipes/{of}.yaml" for of in RECIPES}
        ):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(source.read_bytes())
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "-A")
    git(folder, *GIT, "commit", "-q", "-m", "base")
    return folder


@pytest.fixture
def branch(repository: Path) -> Branch:
    """Makes a branch of main with some files replaced."""

    def make(name: str, files: dict[str, str]) -> str:
        git(repository, "checkout", "-q", "-B", name, "main")
        for path, text in files.items():
            (repository / path).parent.mkdir(parents=True, exist_ok=True)
            (repository / path).write_text(text)
        git(repository, "add", "-A")
        git(repository, *GIT, "commit", "-q", "-m", name)
        git(repository, "checkout", "-q", "main")
        return name

    return make


@pytest.fixture(scope="module", autouse=True)
def base_is_read_once() -> Iterator[None]:
    """All branches fork from the same base, which takes ten seconds to read."""
    side, read = command._side, dict[str, Any]()

    def once(
        code: Path, root: Path, *recipes: str, look: str = "described", seconds: float = command.READ_S
    ) -> dict[str, Any]:
        if root.name != "base" or recipes:
            return side(code, root, *recipes, look=look, seconds=seconds)
        if not read:
            read.update(side(code, root, seconds=seconds))
        return read

    with patch.object(command, "_side", once):
        yield


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True)


def reviewed(repository: Path, head: str, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str, str]:
    code = main(["--repository", str(repository), "--base", "main", "--head", head, *options])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.mark.slow
def test_a_changed_rate_is_shown_with_its_line(
    repository: Path, branch: Branch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (repository / "recipes" / "sft_quality.yaml").read_text()
    head = branch("rate", {"recipes/sft_quality.yaml": text.replace("lr: 5.0e-6", "lr: 6.0e-6")})
    line = 1 + next(number for number, each in enumerate(text.splitlines()) if "lr: 5.0e-6" in each)
    code, out, error = reviewed(repository, head, capsys, "--no-plan")
    assert code == 0
    assert error.splitlines() == ["review: reading the recipes of main", "review: reading the recipes of rate"]
    assert f"curriculum.stages.quality.lr: 5.0e-06 -> 6.0e-06   (recipes/sft_quality.yaml:{line})" in out
    assert "### `supervised`" in out
    assert "### `curriculum`" in out, "a recipe that derives from it changes too"
    assert "### `rl_dapo`" not in out
    assert "python -m framework recipe=supervised scale=tiny" in out


@pytest.mark.slow
def test_a_new_recipe_is_shown_against_its_parent_or_what_it_lists(
    repository: Path, branch: Branch, capsys: pytest.CaptureFixture[str]
) -> None:
    derived = "# Faster.\n# @package _global_\ndefaults:\n  - sft_quality\n  - _self_\nstage: {lr: 2.0e-5}\n"
    listing = "# Two.\n# @package _global_\ncurriculum:\n  recipes: [sft_broad]\n  stages: {broad: {steps: 7}}\n"
    head = branch("new", {"recipes/faster.yaml": derived, "recipes/short.yaml": listing})
    code, out, _ = reviewed(repository, head, capsys, "--no-plan")
    assert code == 0
    faster, short = out.split("### `short` (new)")
    assert "### `faster` (new)\n\nAgainst sft_quality:\n" in faster
    assert "\ncurriculum.stages.quality.lr: 5.0e-06 -> 2.0e-05   (recipes/faster.yaml:6)\n```" in faster
    assert "Against the base with sft_broad:\n" in short
    assert "\ncurriculum.stages.broad.steps: 20000 -> 7   (recipes/short.yaml:5)\n```" in short


@pytest.mark.slow
def test_each_recipe_is_named_when_it_is_planned(capsys: pytest.CaptureFixture[str]) -> None:
    command._plans(REPOSITORY, REPOSITORY, ["sft_broad"])
    assert capsys.readouterr().err == "review: planning sft_broad\n"


def test_a_problem_of_a_recipe_and_of_a_curriculum_that_lists_it_is_told_once() -> None:
    line, message = "recipes/part.yaml:7", "must be a number, not text (fast)"
    problems = {
        "whole": [f"{line} curriculum.stages.part.lr: {message}", f"{line} curriculum.stages.part.decay: {message}"],
        "part": [f"{line} stage.lr: {message}"],
    }
    after = {name: {"problems": [[text, False] for text in texts]} for name, texts in problems.items()}
    expected = [f"{line} stage.lr: {message}", f"{line} curriculum.stages.part.decay: {message}"]
    assert new_faults({}, after) == expected


@pytest.mark.slow
def test_all_problems_of_the_head_are_listed(
    repository: Path, branch: Branch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (
        "# Two faults.\n# @package _global_\ndefaults:\n  - demo\n  - _self_\ndata: {micro_bach: 2}\ntask: {model: 3}\n"
    )
    code, out, _ = reviewed(repository, branch("faults", {"recipes/faulty.yaml": text}), capsys, "--no-plan")
    assert code == 1
    assert "### 2 problems" in out
    assert "recipes/faulty.yaml:6 data.micro_bach" in out
    assert "micro_batch" in out
    assert "recipes/faulty.yaml:7 task.model" in out


@pytest.mark.slow
@pytest.mark.attack("review", "code in packages, plugins, start-up files and recipes of the branch", "not executed")
def test_nothing_of_the_head_is_executed(
    repository: Path, branch: Branch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    plant = f"open({str(marker)!r}, 'w').write('ran')\n"
    sources = {
        path: (repository / path).read_text() + plant
        for path in ("framework/__init__.py", "framework/recipe/compose.py", "plugins/polar_lidar/__init__.py")
    }
    recipe = (
        "# Code as data.\n# @package _global_\ndefaults:\n  - demo\n  - _self_\n"
        f"data: {{cameras: [{{_target_: builtins.open, file: {marker}, mode: w}}]}}\n"
    )
    sitecustomize = {"sitecustomize.py": plant, "tools/__init__.py": plant, "json.py": plant}
    head = branch("planted", {**sources, **sitecustomize, "recipes/planted.yaml": recipe})
    code, out, _ = reviewed(repository, head, capsys)
    assert not marker.exists()
    assert "was not executed: `framework/__init__.py`, `framework/recipe/compose.py`, `plugins/pol" in out
    assert code == 1
    assert "recipes/planted.yaml:6" in out
    assert "builtins.open" in out


@pytest.mark.slow
def test_signatures_that_change_are_named(repository: Path, branch: Branch, capsys: pytest.CaptureFixture[str]) -> None:
    path = "framework/objective/group_filter.py"
    text = (repository / path).read_text()
    assert "floor: Deviation" in text
    head = branch("signature", {path: text.replace("floor: Deviation", "floor: int", 1)})
    code, out, _ = reviewed(repository, head, capsys, "--no-plan")
    assert code == 0
    assert "`framework.objective.group_filter.GroupFilter`" in out
    assert "- floor: Deviation" in out
    assert "+ floor: int" in out


def test_a_slow_plan_costs_the_figures_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "PLAN_S", 0.001)
    assert command._plans(REPOSITORY, REPOSITORY, ["demo"]) == {"demo": "planning took more than 0 s"}
    assert command._plans(REPOSITORY, REPOSITORY, []) == {}


@pytest.mark.attack("review", "a branch's name that is an option of git", "one error")
@pytest.mark.parametrize(
    ("head", "message"),
    [("nowhere", "nowhere: no such branch or commit"), ("--upload-pack=x", "no such branch or commit")],
)
def test_bad_input_is_one_error(repository: Path, capsys: pytest.CaptureFixture[str], head: str, message: str) -> None:
    code = main(["--repository", str(repository), "--base", "main", f"--head={head}"])
    error = capsys.readouterr().err
    assert code == 2
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.attack("review", "a recipe that is a link to another file", "refused")
@pytest.mark.slow
def test_a_link_is_no_recipe(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    git(repository, "checkout", "-q", "-B", "linked", "main")
    (repository / "recipes" / "linked.yaml").symlink_to("/etc/passwd")
    git(repository, "add", "-A")
    git(repository, *GIT, "commit", "-q", "-m", "linked")
    git(repository, "checkout", "-q", "main")
    code, _, error = reviewed(repository, "linked", capsys)
    assert code == 2
    assert "recipes/linked.yaml: not a regular file" in error
