"""Fixes the code and the environment of a job when it is submitted.

The code is a clean git worktree of one commit in the run's folder, so that later edits of the checkout change no job.
The environment is identified by a hash of what is installed in it.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from framework.recipe.credentials import looks_secret

DIFF_FILE = "job.diff"


class SnapshotError(Exception):
    """Code or an environment that cannot be fixed. The text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Code:
    """A commit, with or without uncommitted changes."""

    repository: Path
    """The checkout."""
    sha: str
    """The commit."""
    diff: bytes = b""
    """The uncommitted changes, as a binary git diff; empty: none."""

    def place(self, folder: Path) -> None:
        """Put the code into `folder`, replacing other code that an earlier submission left there. The diff is kept next
        to it as `job.diff`. Raises `SnapshotError`.
        """
        diff_file = folder.with_name(DIFF_FILE)
        before = diff_file.read_bytes() if diff_file.is_file() else b""
        if folder.is_dir() and before == self.diff and _git(folder, "rev-parse", "HEAD").strip() == self.sha:
            return
        if folder.exists():
            _git(self.repository, "worktree", "remove", "--force", str(folder))
        folder.parent.mkdir(parents=True, exist_ok=True)
        _git(self.repository, "worktree", "prune")
        _git(self.repository, "worktree", "add", "--quiet", "--detach", str(folder), self.sha)
        diff_file.unlink(missing_ok=True)
        if self.diff:
            _git(folder, "apply", "--binary", "-", stdin=self.diff)
            diff_file.write_bytes(self.diff)


def choose(repository: Path, ref: str | None, uncommitted: bool) -> Code:
    """Return the code at the branch, tag or SHA `ref`; without one, what is checked out. Uncommitted changes are
    refused unless `uncommitted` includes them. Raises `SnapshotError`.
    """
    if not (repository / ".git").exists():
        raise SnapshotError(f"{repository} is no git checkout, so it has no commit to run; launch from one")
    if ref is not None:
        return Code(repository, _commit(repository, ref))
    sha = _commit(repository, "HEAD")
    changes = _git(repository, "status", "--porcelain").splitlines()
    if not changes:
        return Code(repository, sha)
    if not uncommitted:
        names = ", ".join(line[3:] for line in changes[:5]) + (", ..." if len(changes) > 5 else "")
        raise SnapshotError(
            f"not committed: {names}; commit, or choose launch.ref=SHA, or include the changes with "
            f"launch.uncommitted=true, which keeps them as {DIFF_FILE}"
        )
    diff = _changes(repository)
    if looks_secret(diff.decode("utf-8", "replace")):
        raise SnapshotError(
            "the uncommitted changes hold what looks like a credential, which the run's folder would keep; take it out "
            "and revoke it, or choose launch.ref=SHA"
        )
    return Code(repository, sha, diff)


def packages_hash(python: Path) -> str:
    """Return a hash of what is installed for the interpreter `python` of a virtual environment: names, versions, and
    the hashes of all files as the installer recorded them. Raises `SnapshotError` where there is no such environment.
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
    """The diff to the commit, new files included. It is made in a copy of the index, which stays as it is."""
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder, "index"))}
        _git(repository, "read-tree", "HEAD", variables=index)
        _git(repository, "add", "--all", variables=index)
        return _run(repository, "diff", "--cached", "--binary", "HEAD", variables=index)


def _git(folder: Path, *arguments: str, stdin: bytes = b"", variables: dict[str, str] | None = None) -> str:
    return _run(folder, *arguments, stdin=stdin, variables=variables).decode("utf-8", "replace")


def _run(folder: Path, *arguments: str, stdin: bytes = b"", variables: dict[str, str] | None = None) -> bytes:
    command = ["git", "-C", str(folder), *arguments]
    environment = {**os.environ, **(variables or {})}
    try:
        return subprocess.run(command, input=stdin, capture_output=True, check=True, env=environment).stdout
    except OSError as error:
        raise SnapshotError(f"git: {error}; install git") from error
    except subprocess.CalledProcessError as error:
        reason = error.stderr.decode("utf-8", "replace").strip()
        raise SnapshotError(f"git {' '.join(arguments[:2])} in {folder}: {reason}") from error
