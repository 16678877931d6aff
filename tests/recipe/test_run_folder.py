"""Names and folders of runs that no file system takes, or that are not a run's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from framework.recipe.catalogue import Catalogue
from framework.recipe.check import check


def folder_faults(catalogue: Catalogue, *words: str) -> list[str]:
    """What `check` says of the toy recipe under `words`."""
    return [str(problem) for problem in check(["recipe=toy", *words], catalogue)[1]]


def only_fault(catalogue: Catalogue, *words: str) -> str:
    """The one fault of the toy recipe under `words`."""
    (fault,) = folder_faults(catalogue, *words)
    return fault


@pytest.mark.fault("names too long for a file")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("n" * 256, "has 256 bytes, and a folder's name at most 255"),
        (f"sweep/{'é' * 128}", "has 256 bytes"),
        ("/".join(["n" * 200] * 15), "has a path of 3"),
        ("", "is empty"),
        (" ", "is empty"),
        ("..", "leads out of the folder of all runs"),
        ("sweep/../../other", "leads out of the folder of all runs"),
        ("/runs/other", "leads out of the folder of all runs"),
        ("a b", "has white space, characters that nobody sees or an empty part"),
        ("demo ", "has white space, characters that nobody sees or an empty part"),
        ("a//b", "has white space, characters that nobody sees or an empty part"),
        ("a\nb", "has white space, characters that nobody sees or an empty part"),
        ("-rf", "as an option"),
        ("sweep/-rf", "as an option"),
        ("~", "as a home"),
        ("~root/run", "as a home"),
        ("\udcff", "has white space, characters that nobody sees or an empty part"),
        ("a\u202eb", "has white space, characters that nobody sees or an empty part"),
    ],
)
@pytest.mark.fast_cases(5)
def test_a_run_whose_folder_no_file_system_takes(catalogue: Catalogue, name: str, message: str) -> None:
    fault = only_fault(catalogue, f"run.name='{name}'")
    assert fault.startswith("command line run.name: ")
    assert message in fault
    assert folder_faults(catalogue, f"run.name={'n' * 255}") == []
    long = only_fault(catalogue, f"run.folder=/runs/{'n' * 256}")
    assert long.startswith("command line run.folder: ")


@pytest.mark.attack("folder", "a folder of a run that is another's", "refused by name")
@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("/", "is the root or a home"),
        ("/etc/..", "is the root or a home"),
        ("/etc", "/etc is the system's"),
        ("/usr/runs/new", "/usr/runs/new is the system's"),
        ("/dev/null", "/dev/null is no folder"),
        ("/dev/null/run", "/dev/null is no folder"),
        ("repository", "repository is a repository"),
        ("broken", "broken is no folder"),
        ("loop", "loop"),
        ("~/run", "~ is not expanded"),
        ("-run", "is read as an option"),
        ("runs/a\nb", "has line breaks"),
        ("runs/a\0b", "holds a NUL"),
    ],
)
def test_a_folder_that_is_not_the_run_s_own(catalogue: Catalogue, tree: Path, folder: str, message: str) -> None:
    (tree / "repository" / ".git").mkdir(parents=True)
    (tree / "broken").symlink_to("nowhere")
    (tree / "loop").symlink_to("loop")
    fault = only_fault(catalogue, f"run.folder='{folder}'")
    assert fault.startswith("command line run.folder: ")
    assert message in fault


@pytest.mark.parametrize(
    ("folder", "files"), [("theirs", "(a.txt, b.txt, c.txt and 1 more)"), ("link", "(a.txt, "), (".", "(conf, link, ")]
)
def test_files_of_others_in_the_folder_are_told(catalogue: Catalogue, tree: Path, folder: str, files: str) -> None:
    (tree / "theirs").mkdir()
    for name in ("a.txt", "b.txt", "c.txt", "d.txt"):
        (tree / "theirs" / name).write_text("mine")
    (tree / "link").symlink_to("theirs")
    (warning,) = check(["recipe=toy", f"run.folder={folder}"], catalogue)[1]
    assert warning.warning
    assert f"{folder} holds files, and none of a run {files}" in warning.message


@pytest.mark.parametrize("home", ["home", "home/.."])
def test_a_home_is_no_folder_of_a_run(
    catalogue: Catalogue, tree: Path, home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "home").mkdir()
    monkeypatch.setenv("HOME", str(tree / "home"))
    assert "is the root or a home" in only_fault(catalogue, f"run.folder={tree / home}")
    assert folder_faults(catalogue, f"run.folder={tree}/home/run") == []


@pytest.mark.parametrize(
    "own", ["recipe.yaml", "job.json", "job.sbatch", "writer.guard", "submit.lock", "trial.json", "sweep-1/recipe.yaml"]
)
def test_a_folder_in_which_a_run_began_is_its_own(catalogue: Catalogue, tree: Path, own: str) -> None:
    file = tree / "runs" / "started" / own
    file.parent.mkdir(parents=True)
    file.touch()
    (tree / "runs" / "empty").mkdir()
    for name in ("started", "empty", "new"):
        assert folder_faults(catalogue, f"run.name={name}") == []


def test_a_folder_that_nobody_may_write_in(catalogue: Catalogue, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "runs" / "toy").mkdir(parents=True)
    monkeypatch.setattr("framework.recipe.run_folder.os.access", lambda path, mode: False)  # root may write anywhere
    assert "runs/toy cannot be written by this user" in only_fault(catalogue)
