"""Code is fixed at a commit, changes only on request, and an environment is known by what is installed in it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from framework.launch.snapshot import SnapshotError, choose, packages_hash
from tests.launch.conftest import commit, git


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch=main")
    (folder / "a.py").write_text("one\n")
    commit(folder, "one")
    return folder


@pytest.mark.guarantee("A job runs the code that was submitted")
def test_the_snapshot_keeps_what_was_committed(repository: Path, tmp_path: Path) -> None:
    code = choose(repository, None, uncommitted=False)
    code.place(tmp_path / "run" / "code")
    (repository / "a.py").write_text("two\n")
    assert (tmp_path / "run" / "code" / "a.py").read_text() == "one\n"
    assert git(tmp_path / "run" / "code", "rev-parse", "HEAD").strip() == code.sha


def test_a_branch_or_sha_is_taken_whatever_is_checked_out(repository: Path, tmp_path: Path) -> None:
    first = git(repository, "rev-parse", "HEAD").strip()
    (repository / "a.py").write_text("two\n")
    second = commit(repository, "two")
    (repository / "a.py").write_text("three\n")
    for ref, sha, text in [(first, first, "one\n"), (first[:8], first, "one\n"), ("main", second, "two\n")]:
        code = choose(repository, ref, uncommitted=False)
        code.place(tmp_path / "code")
        assert code.sha == sha
        assert (tmp_path / "code" / "a.py").read_text() == text


@pytest.mark.guarantee("A job runs the code that was submitted")
def test_changes_are_refused_with_their_files(repository: Path) -> None:
    (repository / "a.py").write_text("two\n")
    (repository / "new.py").write_text("new\n")
    with pytest.raises(SnapshotError, match=r"not committed: a\.py, new\.py; commit, or .*launch\.uncommitted=true"):
        choose(repository, None, uncommitted=False)


def test_changes_are_taken_along_and_kept_when_asked_for(repository: Path, tmp_path: Path) -> None:
    (repository / "a.py").write_text("two\n")
    (repository / "new.bin").write_bytes(bytes(range(256)))
    git(repository, "add", "a.py")
    code = choose(repository, None, uncommitted=True)
    code.place(tmp_path / "code")
    assert (tmp_path / "code" / "a.py").read_text() == "two\n"
    assert (tmp_path / "code" / "new.bin").read_bytes() == bytes(range(256))
    assert (tmp_path / "job.diff").read_bytes() == code.diff
    assert git(repository, "status", "--porcelain").splitlines() == ["M  a.py", "?? new.bin"]


def test_changes_that_hold_a_credential_are_not_taken_along(repository: Path) -> None:
    (repository / "a.py").write_text(f"token = 'ghp_{'a1B2' * 9}'\n")
    with pytest.raises(SnapshotError, match="looks like a credential") as refused:
        choose(repository, None, uncommitted=True)
    assert "a1B2" not in str(refused.value)


def test_placing_again_replaces_what_differs_and_leaves_what_does_not(repository: Path, tmp_path: Path) -> None:
    choose(repository, None, uncommitted=False).place(tmp_path / "code")
    before = (tmp_path / "code" / "a.py").stat()
    choose(repository, None, uncommitted=False).place(tmp_path / "code")
    assert (tmp_path / "code" / "a.py").stat().st_ino == before.st_ino
    (repository / "a.py").write_text("two\n")
    choose(repository, None, uncommitted=True).place(tmp_path / "code")
    assert (tmp_path / "code" / "a.py").read_text() == "two\n"
    git(repository, "checkout", "--quiet", "a.py")
    choose(repository, None, uncommitted=False).place(tmp_path / "code")
    assert (tmp_path / "code" / "a.py").read_text() == "one\n"
    assert not (tmp_path / "job.diff").exists()


@pytest.mark.parametrize("ref", ["nowhere", "--all", "", "$(a)"])
def test_a_commit_that_is_not_there_is_named(repository: Path, ref: str) -> None:
    with pytest.raises(SnapshotError, match=r"launch\.ref: .* is no branch, tag or commit"):
        choose(repository, ref, uncommitted=False)


def test_a_folder_without_commits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match="is no git checkout"):
        choose(tmp_path, None, uncommitted=False)


def environment(folder: Path, **packages: str) -> Path:
    """A virtual environment's interpreter, as far as installed packages go."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    for name, version in packages.items():
        info = folder / "lib" / "python3.11" / "site-packages" / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "RECORD").write_text(f"{name}.py,sha256=abc,3\n")
    return folder / "bin" / "python"


@pytest.mark.guarantee(
    "A preflight finds what would stop a job, and each node compares its packages with the submitted ones"
)
def test_the_hash_is_that_of_what_is_installed(tmp_path: Path) -> None:
    first = environment(tmp_path / "a", torch="2.11", numpy="1.26")
    same = environment(tmp_path / "b", numpy="1.26", torch="2.11")
    other = environment(tmp_path / "c", torch="2.12", numpy="1.26")
    assert packages_hash(first) == packages_hash(same) != packages_hash(other)
    record = next((tmp_path / "b").rglob("torch-*/RECORD"))
    record.write_text("torch.py,sha256=patched,3\n")
    assert packages_hash(first) != packages_hash(same)


def test_an_environment_that_is_not_there_is_reported_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match="make setup VENV="):
        packages_hash(tmp_path / "bin" / "python")
