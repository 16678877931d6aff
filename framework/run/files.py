"""How files come to be: whole or not at all, whatever process is killed and whoever reads at the same time.

Every file that another process reads, or that a restart relies on, is written through this module.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yield a fresh file name in the folder of `path`, which is created. When the block ends, what was written there
    takes the place of `path` in one step; when it raises, the fresh file is deleted and `path` stays as it was.

    `durable`: the new content outlives a crash of the node (fsync of the file and of its folder). Without it a reader
    still sees the old file or the new, never half of one.
    """
    fresh = _fresh_name(path)
    try:
        yield fresh
        if durable:
            sync(fresh)
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)


def write_text(path: Path, text: str, durable: bool = True) -> None:
    """Write or replace a file atomically; see `replacing`."""
    with replacing(path, durable) as fresh:
        fresh.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, durable: bool = True) -> None:
    """Write or replace a JSON file atomically; see `replacing`."""
    write_text(path, json.dumps(value, indent=1), durable)


def read_json(path: Path) -> Any:
    """The content of a JSON file; None where there is no file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def create_text(path: Path, text: str) -> bool:
    """Create a file, whole and durably. Returns False, and changes nothing, where it exists: of several processes that
    create the same file, one succeeds.
    """
    fresh = _fresh_name(path)
    fresh.write_text(text, encoding="utf-8")
    sync(fresh)
    try:
        path.hardlink_to(fresh)  # unlike a rename, it fails where the target exists, on NFS too
    except FileExistsError:
        return False
    finally:
        fresh.unlink()
    sync(path.parent)
    return True


def append_line(path: Path, line: str) -> None:
    """Append `line` and a newline; see `append_text`."""
    append_text(path, f"{line}\n")


def append_text(path: Path, text: str) -> None:
    """Append in one write, so that a crash leaves all of `text` or nothing, and lines of several processes on a node
    do not mix. Creates the file and its folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def sync(path: Path) -> None:
    """Make the content of a file, or the names in a folder, outlive a crash of the node."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fresh_name(path: Path) -> Path:
    """A name next to `path` that nobody else on any node writes to, hidden from the patterns that look for files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{os.uname().nodename}.{threading.get_native_id()}")
