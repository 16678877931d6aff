"""One writer a run folder: who writes in it now, and whether that process still lives.

RUN/writer.json    host, process and start time of the writer, whose time of modification is its last sign of life
RUN/writer.guard   locked by the kernel while a process reads `writer.json` and takes its place

On the host of the writer the process table says whether it lives, so that a killed run restarts at once. Seen from
another host, a writer is dead once it has given no sign of life for `STALE_S` by the file server's clock.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from framework.run.files import create_text, read_json, to_json
from framework.run.layout import WRITER_FILE
from framework.run.lock import guarded

log = logging.getLogger(__name__)

BEAT_S = 10.0
"""Seconds between two signs of life."""
STALE_S = 90.0
"""Seconds without a sign of life after which a writer on another host counts as dead."""


class RunInUseError(Exception):
    """Another process writes in the run's folder."""


@dataclass(frozen=True, slots=True)
class Writer:
    """The process that writes in a run's folder."""

    host: str
    """Its host's name."""
    boot: str
    """What distinguishes its host since the last boot, and its process-id namespace."""
    process: int
    """Its process id."""
    started: str
    """When the process started, in the kernel's ticks since boot: ids are reused, pairs of both are not."""
    since: float
    """When it took the folder (Unix, s)."""
    token: str
    """Random; no two writers share one."""

    @classmethod
    def here(cls) -> Writer:
        """This process."""
        host, process = socket.gethostname(), os.getpid()
        return cls(host, _boot(), process, _start_of(process) or "", time.time(), secrets.token_hex(8))

    @property
    def is_dead(self) -> bool | None:
        """Whether the process has ended; None where only its signs of life can tell."""
        if self.host != socket.gethostname() or self.boot != _boot():
            return None
        return _start_of(self.process) != self.started

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.process} on {self.host} (since {since})"


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Be the only writer in the run's `folder` for the duration of the block.

    The place of a dead writer is taken. Of a writer on another host that has just given a sign of life, the next sign
    is waited for. If this process loses its place, because it was suspended for longer than `STALE_S`, it receives
    SIGTERM, upon which training saves and ends.

    Raises `RunInUseError` where another process writes there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file, me = folder / WRITER_FILE, Writer.here()
    signs: set[float] = set()
    while not _taken(file, me, signs):
        time.sleep(min(1.0, BEAT_S / 2))
    ended = threading.Event()
    beat = threading.Thread(target=_give_signs, args=(file, me, ended), name="writer lock", daemon=True)
    beat.start()
    try:
        yield
    finally:
        ended.set()
        beat.join()
        with guarded(file.with_suffix(".guard")):
            if _writer(file) == me:
                file.unlink(missing_ok=True)


def _taken(file: Path, me: Writer, signs: set[float]) -> bool:
    """Take the place of the writer in `file`; False while it may be dead. Raises `RunInUseError` if it lives.

    `signs` collects the times of the signs of life that were seen.
    """
    with guarded(file.with_suffix(".guard")):
        if create_text(file, to_json(asdict(me))):
            return True
        other = _writer(file)
        dead = other.is_dead if other is not None else None
        sign, age = _last_sign(file)
        first_look = not signs
        signs.add(sign)
        if dead is False or (dead is None and len(signs) > 1):
            raise RunInUseError(
                f"{file.parent}: {other or 'another process'} writes in this run's folder, its last sign of life was "
                f"{max(0.0, age):.0f} s ago; wait until it ends, stop it, or give another run.name"
            )
        if dead is None and age < STALE_S:
            if first_look:
                log.warning("%s: %s may be dead; waiting for %.0f s at most", file, other, STALE_S - age)
            return False
        log.warning("%s: %s has ended without releasing the folder; this process takes its place", file, other)
        file.unlink(missing_ok=True)
        return create_text(file, to_json(asdict(me)))


def _give_signs(file: Path, me: Writer, ended: threading.Event) -> None:
    """Touch `file` every `BEAT_S`, and terminate this process if it is another's."""
    while not ended.wait(BEAT_S):
        try:
            other = _writer(file)
            if other is None and not file.exists():
                create_text(file, to_json(asdict(me)))  # somebody deleted it
            elif other is not None and other.token != me.token:
                log.error("%s: %s has taken this process's place, which was suspended; it ends", file, other)
                os.kill(os.getpid(), signal.SIGTERM)
                return
            os.utime(file)
        except OSError as error:  # the next sign may succeed
            log.warning("%s: %s", file, error)


def _writer(file: Path) -> Writer | None:
    """The writer in `file`; None where there is none, or none that can be read."""
    with suppress(ValueError, TypeError, KeyError, OSError, OverflowError):
        values = read_json(file)
        writer = Writer(**{field.name: values[field.name] for field in fields(Writer)})
        str(writer)  # raises for a time that is none
        texts = (writer.host, writer.boot, writer.started, writer.token)
        return writer if type(writer.process) is int and all(isinstance(text, str) for text in texts) else None
    return None


def _last_sign(file: Path) -> tuple[float, float]:
    """When `file` was last touched, and how long ago that is, both by the clock of the server that keeps it."""
    probe = file.with_name(f".{file.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        probe.touch()
        os.utime(probe)
        sign = file.stat().st_mtime
        return sign, probe.stat().st_mtime - sign
    except FileNotFoundError:
        return 0.0, float("inf")
    finally:
        probe.unlink(missing_ok=True)


def _boot() -> str:
    """This boot of the host and this process-id namespace; empty where the system does not tell."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}.{Path('/proc/self/ns/pid').stat().st_ino}"
    return ""


def _start_of(process: int) -> str | None:
    """When `process` started, in ticks since boot; None for one that has ended, if only its parent does not know."""
    try:
        status = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *rest = status.rpartition(")")[2].split()
    return None if state in ("Z", "X") else rest[18]
