"""A checkpoint exists when its COMMIT does: the manifest vouches for every file's size and hash, COMMIT vouches for
the manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

MANIFEST = "manifest.json"
COMMIT = "COMMIT"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, trusted or loaded; the message names the folder, the file and the remedy."""


def file_hash(path: Path) -> str:
    """SHA-256 of a file, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_durably(path: Path, text: str) -> None:
    """Write `text` so that the file is either absent or whole after a crash: a temporary name, fsync, rename, fsync
    of the folder.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def commit(folder: Path) -> None:
    """Vouch for everything in `folder`: write its manifest, then COMMIT. Call once, after the last rank has written."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in (MANIFEST, COMMIT))
    entries = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": file_hash(path)} for path in files
    }
    write_durably(folder / MANIFEST, json.dumps({"files": entries}, indent=1))
    write_durably(folder / COMMIT, file_hash(folder / MANIFEST))


def problems(folder: Path) -> list[str]:
    """What is wrong with the checkpoint in `folder`; empty when every byte is as it was committed. Reads, never
    unpickles.
    """
    if not (folder / COMMIT).is_file():
        return [f"{folder}: no {COMMIT}: it was never finished"]
    manifest = folder / MANIFEST
    if not manifest.is_file() or file_hash(manifest) != (folder / COMMIT).read_text().strip():
        return [f"{manifest}: not the manifest that {COMMIT} vouches for"]
    found: list[str] = []
    entries: dict[str, dict[str, int | str]] = json.loads(manifest.read_text())["files"]
    for name, entry in entries.items():
        path = folder / name
        if not path.is_file():
            found.append(f"{path}: missing")
        elif path.stat().st_size != entry["bytes"]:
            found.append(f"{path}: {path.stat().st_size} bytes, committed with {entry['bytes']}")
        elif file_hash(path) != entry["sha256"]:
            found.append(f"{path}: its hash is not the committed one")
    strangers = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} - {*entries, MANIFEST, COMMIT}
    found += [f"{folder / name}: not in the manifest" for name in sorted(strangers)]
    return found
