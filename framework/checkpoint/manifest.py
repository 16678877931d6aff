"""A checkpoint exists when its COMMIT does: the manifest holds size and hash of every file, COMMIT holds the manifest's
hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypedDict

from framework.run.files import sync, write_text
from framework.run.layout import COMMIT

MANIFEST = "manifest.json"
"""File with size and hash of all others."""
READERS = 4
"""Files hashed at a time: hashing releases the interpreter, and one stream rarely fills a disk."""


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, trusted or loaded; the message names the folder, the file and the remedy."""


class Entry(TypedDict):
    """A file's entry in the manifest."""

    bytes: int
    """Size of the file."""
    sha256: str
    """Hash of its content, in hexadecimal."""


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def entry_of(path: Path) -> Entry:
    """The manifest entry of the file at `path` as it reads now."""
    return {"bytes": path.stat().st_size, "sha256": file_hash(path)}


def files_in(folder: Path) -> set[str]:
    """Names, relative to `folder`, of the files that a manifest must list."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {MANIFEST, COMMIT}


def commit(folder: Path, entries: Mapping[str, Entry]) -> None:
    """Write the manifest of `entries`, then COMMIT. To be called once, after the last rank has written.

    Raises `CheckpointError` when `folder` holds a file that `entries` do not list.
    """
    unlisted = files_in(folder) - set(entries)
    if unlisted:
        raise CheckpointError(f"{folder}: {', '.join(sorted(unlisted))}: written by none of its ranks; not committed")
    write_text(folder / MANIFEST, json.dumps({"files": dict(sorted(entries.items()))}, indent=1))
    write_text(folder / COMMIT, file_hash(folder / MANIFEST))
    sync(folder.parent)


def problems(folder: Path, rank: int = 0, size: int = 1) -> list[str]:
    """Faults of the checkpoint in `folder`; empty when every byte is as it was committed. Reads, but never unpickles.

    When all `size` ranks call this, each file is hashed by one of them.
    """
    if not (folder / COMMIT).is_file():
        return [f"{folder}: no {COMMIT}: it was never finished"]
    manifest = folder / MANIFEST
    if not manifest.is_file() or file_hash(manifest) != (folder / COMMIT).read_text().strip():
        return [f"{manifest}: not the manifest that {COMMIT} was written for"]
    entries: dict[str, Entry] = json.loads(manifest.read_text())["files"]
    unlisted = [f"{folder / name}: not in the manifest" for name in sorted(files_in(folder) - set(entries))]
    share = list(entries.items())[rank::size]
    with ThreadPoolExecutor(READERS) as readers:
        checked = readers.map(lambda item: _problem(folder / item[0], item[1]), share)
        return [problem for problem in checked if problem is not None] + unlisted


def _problem(path: Path, entry: Entry) -> str | None:
    if not path.is_file():
        return f"{path}: missing"
    if path.stat().st_size != entry["bytes"]:
        return f"{path}: {path.stat().st_size} bytes, committed with {entry['bytes']}"
    try:
        if file_hash(path) == entry["sha256"]:
            return None
    except OSError as error:  # a bad block, a lost server
        return f"{path}: cannot be read ({error})"
    return f"{path}: its hash differs from the committed one"
