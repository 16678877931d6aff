"""Git trees laid out as folders: the base's code, and the head's YAML over it.

Nothing of the head is executed unless it is trusted: of an untrusted head only regular YAML files are taken.
"""

from __future__ import annotations

import io
import re
import subprocess
import tarfile
from pathlib import Path

YAML = re.compile(r"(conf|recipes|plugins/[^/]+/(conf|recipes))/.+\.ya?ml")
"""The files that describe recipes."""
SOURCE = re.compile(r"(framework|plugins)/.+\.py")
"""The files that define components."""
LARGEST = 1 << 20
"""Bytes of the largest YAML file that is read."""


class ReviewError(ValueError):
    """Says in one line what cannot be reviewed, and what to do."""


def commit(repository: Path, ref: str) -> str:
    """The full hash of `ref`. Raises `ReviewError` for a name that is none."""
    output = _git(repository, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
    if output is None:
        raise ReviewError(f"{ref}: no such branch or commit in {repository}; fetch it first")
    return output.decode().strip()


def fork_point(repository: Path, base: str, head: str) -> str:
    """The commit that `head` left `base` at, so that what `base` got since is not taken for a change of `head`."""
    output = _git(repository, "merge-base", base, head)
    if output is None:
        raise ReviewError(f"{base} and {head} have no common commit; fetch the whole history (fetch-depth: 0)")
    return output.decode().strip()


def files(repository: Path, commit_hash: str, pattern: re.Pattern[str]) -> dict[str, bytes]:
    """The regular files of a commit whose path matches `pattern`. Raises `ReviewError` for a link among them."""
    listing = _git(repository, "ls-tree", "-r", "-z", "--long", commit_hash) or b""
    files = {}
    for entry in filter(None, listing.split(b"\0")):
        described, _, raw = entry.partition(b"\t")
        mode, _, blob, size = described.decode().split()
        path = raw.decode("utf-8", "surrogateescape")
        if not pattern.fullmatch(path):
            continue
        if mode not in ("100644", "100755"):
            raise ReviewError(f"{path}: not a regular file (mode {mode}); recipes and presets are files, not links")
        if int(size) > LARGEST:
            raise ReviewError(f"{path}: {int(size):,} bytes; a file of more than {LARGEST:,} bytes is not read")
        files[path] = _git(repository, "cat-file", "blob", blob) or b""
    return files


def lay_base(repository: Path, base: str, folder: Path) -> None:
    """The whole tree of `base` below `folder`."""
    archive = _git(repository, "archive", "--format=tar", base)
    if archive is None:
        raise ReviewError(f"{base}: cannot be archived")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tree:
        tree.extractall(folder, filter="data")


def lay_head(repository: Path, base: str, head: str, folder: Path, trust: bool) -> None:
    """The tree that the head's recipes are read in: with `trust` the head's own, else the base's code and the head's
    YAML."""
    if trust:
        lay_base(repository, head, folder)
        return
    lay_base(repository, base, folder)
    for path in files(repository, base, YAML):
        (folder / path).unlink()
    for path, content in files(repository, head, YAML).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def _git(repository: Path, *arguments: str) -> bytes | None:
    done = subprocess.run(["git", "-C", str(repository), *arguments], capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else None
