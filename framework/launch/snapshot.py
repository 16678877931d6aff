"""The code and the environment that a job runs, fixed when it is submitted.

Code is a clean git worktree of one commit in the run's folder, so that whoever edits the checkout afterwards changes
no job; the environment is known by a hash over what is installed in it.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

DIFF_FILE = "job.diff"


class SnapshotError(Exception):
    """Code or an environment that cannot be fixed; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Code:
    """The commit `sha` of the checkout `repository`, and the `diff` by which the code differs from it (empty: it does
    not).
    """

    repository: Path
    sha: str
    diff: bytes = b""

    def place(self, folder: Path) -> None:
        """Put the code into `folder`, where what an earlier submission left is replaced unless it is the same. A diff
        is kept beside it as `job.diff`. Raises `SnapshotError`.
        """
        kept = folder.with_name(DIFF_FILE)
        before = kept.read_bytes() if kept.is_file() else b""
        if folder.is_dir() and before == self.diff and _git(folder, "rev-parse", "HEAD").strip() == self.sha:
            return
        if folder.exists():
            _git(self.repository, "worktree", "remove", "--force", str(folder))
        folder.parent.mkdir(parents=True, exist_ok=True)
        _git(self.repository, "worktree", "prune")
        _git(self.repository, "worktree", "add", "--quiet", "--detach", str(folder), self.sha)
        kept.unlink(missing_ok=True)
        if self.diff:
            _git(folder, "apply", "--binary", "-", given=self.diff)
            kept.write_bytes(self.diff)


def choose(repository: Path, ref: str | None, uncommitted: bool) -> Code:
    """The code at the branch, tag or SHA `ref`; without one, what is checked out, where changes that are not
    committed are refused unless `uncommitted` takes them along. Raises `SnapshotError`.
    """
    if not (repository / ".git").exists():
        raise SnapshotError(f"{repository} is no git checkout, and so has no commit to run; launch from one")
    if ref is not None:
        return Code(repository, _commit(repository, ref))
    sha = _commit(repository, "HEAD")
    changes = _git(repository, "status", "--porcelain").splitlines()
    if not changes:
        return Code(repository, sha)
    if not uncommitted:
        names = ", ".join(line[3:] for line in changes[:5]) + (", ..." if len(changes) > 5 else "")
        raise SnapshotError(
            f"not committed: {names}; commit, or choose launch.ref=SHA, or take the changes along with "
            f"launch.uncommitted=true, which keeps them as {DIFF_FILE}"
        )
    return Code(repository, sha, _changes(repository))


def packages_hash(python: Path) -> str:
    """A hash of what is installed for the interpreter `python` of a virtual environment: names, versions, and the
    hashes of all files as the installer recorded them. Raises `SnapshotError` where there is no such environment.
    """
    folders = sorted(python.parent.parent.glob("lib/python*/site-packages"))
    if not os.access(python, os.X_OK) or not folders:
        raise SnapshotError(f"{python}: no Python of a virtual environment; make one with `make setup VENV=FOLDER`")
    digest = hashlib.sha256()
    for installed in sorted((info for folder in folders for info in folder.glob("*-info")), key=lambda info: info.name):
        record = installed / "RECORD"
        digest.update(f"{installed.name}\0".encode() + (record.read_bytes() if record.is_file() else b"") + b"\0")
    return digest.hexdigest()[:16]


def _commit(repository: Path, ref: str) -> str:
    try:
        return _git(repository, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}").strip()
    except SnapshotError as error:
        raise SnapshotError(
            f"launch.ref: {ref!r} is no branch, tag or commit of {repository}; fetch it first"
        ) from error


def _changes(repository: Path) -> bytes:
    """All that differs from the commit, new files included. The index is a copy: what is staged stays as it is."""
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder, "index"))}
        _git(repository, "read-tree", "HEAD", variables=index)
        _git(repository, "add", "--all", variables=index)
        return _run(repository, "diff", "--cached", "--binary", "HEAD", variables=index)


def _git(folder: Path, *arguments: str, given: bytes = b"", variables: dict[str, str] | None = None) -> str:
    return _run(folder, *arguments, given=given, variables=variables).decode("utf-8", "replace")


def _run(folder: Path, *arguments: str, given: bytes = b"", variables: dict[str, str] | None = None) -> bytes:
    command = ["git", "-C", str(folder), *arguments]
    environment = {**os.environ, **(variables or {})}
    try:
        return subprocess.run(command, input=given, capture_output=True, check=True, env=environment).stdout
    except OSError as error:
        raise SnapshotError(f"git: {error}; install git") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode("utf-8", "replace").strip()
        raise SnapshotError(f"git {' '.join(arguments[:2])} in {folder}: {said}") from error
