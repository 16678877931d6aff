"""How files come to be: whole or not at all, whatever process is killed and whoever reads at the same time.

Every file that another process reads, or that a restart relies on, is written through this module. Records and JSON
are written without secrets, whatever told them: an error, a library's warning, a scene's caption. What `write_text` and
`create_text` get they write as it is.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from framework.recipe.credentials import masked
from framework.run.lock import wait_for_lock

log = logging.getLogger(__name__)


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
    """Write or replace a JSON file atomically, its secrets masked; see `replacing`."""
    write_text(path, masked(to_json(value)), durable)


def to_json(value: Any) -> str:
    """The text of a JSON file."""
    return json.dumps(value, indent=1)


def read_json(path: Path) -> Any:
    """The content of a JSON file; None where there is no file. Raises `ValueError` for what is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: {error}: is not JSON; restore the file, or delete it where it can be made again"
        ) from error


def create_text(path: Path, text: str, mode: int = 0o644) -> bool:
    """Create a file with the permissions `mode`, whole and durably. Returns False, and changes nothing, where it
    exists: of several processes that create the same file, one succeeds.
    """
    fresh = _fresh_name(path)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", encoding="utf-8") as file:
        file.write(text)
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
    """Append whole lines, their secrets masked. Creates the file and its folder.

    Several processes may append to one file: each waits for the others. A last line that a crash has cut is removed
    first, so that the file consists of whole lines again and no new line is glued to half of an old one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file:
        _mend_end(file, alone=wait_for_lock(file))
        rest = masked(text).encode()
        while rest:
            rest = rest[file.write(rest) :]


def _mend_end(file: IO[bytes], alone: bool) -> None:
    """Remove what a crash left of the last line of `file`, or complete it where only its newline is missing.

    Where this process is not `alone`, the rest may be a line that another process writes now, and stays, as a line of
    its own.
    """
    size = file.seek(0, os.SEEK_END)
    if size == 0 or os.pread(file.fileno(), 1, size - 1) == b"\n":
        return
    content = os.pread(file.fileno(), size, 0)
    start = content.rfind(b"\n") + 1
    rest = content[start:].rstrip(b"\0")  # after a power cut, blocks whose data never reached the disk read as zeros
    whole = _record(rest.decode("utf-8", "replace")) is not None
    if alone:
        file.truncate(start + len(rest) if whole else start)
    if whole or not alone:
        file.write(b"\n")


def read_lines(path: Path) -> list[str]:
    """The whole lines of an append-only file; none where there is no file. A cut last line and zeros are left out."""
    lines = _content(path).split("\n")[:-1]
    return [text for line in lines if (text := line.strip("\0\r"))]


def read_records(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file of JSON lines; none where there is no file.

    Lines that a crash or a full disk has damaged are left out, with a warning.
    """
    lines = [text for line in _content(path).split("\n") if (text := line.strip("\0 \r"))]
    records = [_record(line) for line in lines]
    if damaged := records.count(None):
        log.warning("%s: %d of %d lines are cut or damaged; passed over", path, damaged, len(lines))
    return [record for record in records if record is not None]


def _content(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""


def _record(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


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
