"""A checkpoint exists when its COMMIT does: the manifest holds size and hash of every file, COMMIT holds the manifest's
hash.

Hashes tell damage, not malice: who can write the folder can write them. Where the environment holds `KEY`, manifests
are signed with it (HMAC-SHA256, RFC 2104), and a checkpoint without a valid signature is refused.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypedDict

from framework.run.files import sync, write_text
from framework.run.layout import COMMIT, parse_checkpoint

MANIFEST = "manifest.json"
"""File with size and hash of all others."""
SIGNATURE = "SIGNATURE"
"""File with the manifest's signature, in hexadecimal; only of runs whose environment holds `KEY`."""
KEY = "CHECKPOINT_KEY"
"""Variable of the key that signs and verifies manifests, at least `SHORTEST_KEY` characters."""
SHORTEST_KEY = 32
"""Characters of the shortest key: 128 bits in hexadecimal."""
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
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return names - {MANIFEST, SIGNATURE, COMMIT}


def signing_key() -> bytes | None:
    """The key of the environment's `KEY`; None without one. Raises `CheckpointError` for one that is too short."""
    key = os.environ.get(KEY)
    if not key:
        return None
    if len(key) < SHORTEST_KEY:
        raise CheckpointError(
            f"{KEY}: {len(key)} characters, at least {SHORTEST_KEY} are needed; make one with `openssl rand -hex 32`"
        )
    return key.encode()


def signature(manifest: bytes, key: bytes) -> str:
    """The signature of a manifest's content by `key`, in hexadecimal."""
    return hmac.new(key, manifest, hashlib.sha256).hexdigest()


def commit(folder: Path, entries: Mapping[str, Entry]) -> None:
    """Write the manifest of `entries`, its signature where there is a key, then COMMIT.

    To be called once, after the last rank has written.

    Raises `CheckpointError` when `folder` holds a file that `entries` do not list, and for a key that is too short.
    """
    key = signing_key()
    unlisted = files_in(folder) - set(entries)
    if unlisted:
        raise CheckpointError(f"{folder}: {', '.join(sorted(unlisted))}: written by none of its ranks; not committed")
    write_text(folder / MANIFEST, json.dumps({"files": dict(sorted(entries.items()))}, indent=1))
    if key is not None:
        write_text(folder / SIGNATURE, signature((folder / MANIFEST).read_bytes(), key))
    write_text(folder / COMMIT, file_hash(folder / MANIFEST))
    sync(folder.parent)


def problems(folder: Path, rank: int = 0, size: int = 1) -> list[str]:
    """Faults of the checkpoint in `folder`; empty when every byte is as it was committed. Reads, but never unpickles.

    When all `size` ranks call this, each file is hashed by one of them.
    """
    if not (folder / COMMIT).is_file():
        return [f"{folder}: no {COMMIT}: it was never finished"]
    manifest = folder / MANIFEST
    content = manifest.read_bytes() if manifest.is_file() else b""  # once: what is verified is what is used
    if hashlib.sha256(content).hexdigest() != (folder / COMMIT).read_text(errors="replace").strip():
        return [f"{manifest}: not the manifest that {COMMIT} was written for"]
    if (forged := _unsigned(folder, content)) is not None:
        return [forged]
    try:
        entries = _entries(content)
    except ValueError as error:
        return [f"{manifest}: {error}: no framework wrote this"]
    unlisted = [f"{folder / name}: not in the manifest" for name in sorted(files_in(folder) - set(entries))]
    share = list(entries.items())[rank::size]
    with ThreadPoolExecutor(READERS) as readers:
        checked = readers.map(lambda item: _problem(folder / item[0], item[1]), share)
        return [problem for problem in checked if problem is not None] + unlisted + _misnamed(folder)


def _misnamed(folder: Path) -> list[str]:
    """The fault of a checkpoint that was renamed or copied, and would go on at a step that its weights have not had."""
    named = parse_checkpoint(folder)
    try:
        state = json.loads((folder / "state.json").read_bytes())
        saved = state["step"], state["attempt"]
    except (OSError, ValueError, LookupError, TypeError):  # which the manifest tells, or it holds no step at all
        return []
    if named is None or saved == (named.step, named.attempt):
        return []
    return [f"{folder}: is of step {saved[0]} by attempt {saved[1]}, as its state.json says; give it that name again"]


def _unsigned(folder: Path, manifest: bytes) -> str | None:
    """Why `manifest`, the content of that in `folder`, is not to be trusted; None when it is, or when no key asks for a
    signature.
    """
    key = signing_key()
    if key is None:
        return None
    signed = folder / SIGNATURE
    if not signed.is_file():
        return f"{signed}: missing, and {KEY} asks for it; unset {KEY} to trust an unsigned checkpoint"
    if not hmac.compare_digest(signed.read_bytes().strip(), signature(manifest, key).encode()):
        return f"{signed}: not made with this {KEY}: another key, or the manifest was changed"
    return None


def _entries(manifest: bytes) -> dict[str, Entry]:
    """The entries of a manifest. Raises `ValueError` for one that is malformed or names a file outside its folder."""
    try:
        content = json.loads(manifest)
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    files = content.get("files") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not files:
        raise ValueError("lists no files")
    for name, entry in files.items():
        if not isinstance(entry, dict) or set(entry) != {"bytes", "sha256"}:
            raise ValueError(f"{name}: not an entry of size and hash")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{name}: lies outside the checkpoint")
    return files


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
