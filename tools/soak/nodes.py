"""The nodes of a soak's job on this machine: each a supervisor with one worker, under a scheduler that has it back."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from framework.launch.supervisor.restart import committed_step
from framework.run.heartbeat import parse_heartbeat

NODES = 2
LOOK_S = 0.2
RULES = (
    "--floor-s",
    "15",
    "--patience",
    "900",
    "--restarts",
    "1000",
    "--max-attempts-without-progress",
    "12",
    "--back-off-s",
    "1",
)
"""How a supervisor is to be where faults strike every minute."""
LONGEST_S = 1800.0


class Job:
    """The run in `folder`, trained with `words` over `NODES` nodes; what they say goes to `node-<n>.log` in it. What is
    no step may show no sign of life for `silent_s` seconds.
    """

    def __init__(
        self, folder: Path, words: Sequence[str], environment: Mapping[str, str], silent_s: float = LONGEST_S
    ) -> None:
        self.folder = folder
        self.silent_s = silent_s
        self.words = list(words)
        self.environment = dict(environment)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        folder.mkdir(parents=True, exist_ok=True)
        self.nodes = [self._start(node) for node in range(NODES)]

    def log(self, node: int) -> Path:
        """What a node's supervisors and workers have said."""
        return self.folder / f"node-{node}.log"

    def _start(self, node: int) -> subprocess.Popen[bytes]:
        place = ["--nodes", str(NODES), "--node", str(node), "--address", f"127.0.0.1:{self.port}"]
        command = [
            sys.executable,
            "-m",
            "framework.launch.supervisor.main",
            "--folder",
            str(self.folder),
            "--workers",
            "1",
        ]
        silent = [word for each in ("start", "checkpoint", "evaluate") for word in (f"--{each}-s", str(self.silent_s))]
        with self.log(node).open("ab") as log:
            return subprocess.Popen(
                [*command, *place, *RULES, *silent, "--", *self.words],
                stdout=log, stderr=subprocess.STDOUT, env=self.environment, start_new_session=True,
            )  # fmt: skip

    def lose(self, node: int) -> None:
        """The supervisor of a node and all that it started are gone at once; the scheduler starts it anew."""
        for pid in [*family(self.nodes[node].pid), self.nodes[node].pid]:
            kill(pid, signal.SIGKILL)
        self.nodes[node].wait()
        time.sleep(2.0)
        self.nodes[node] = self._start(node)

    def worker(self, node: int) -> int | None:
        """The process id of a node's worker; None where there is none now."""
        return next(iter(children(self.nodes[node].pid)), None)

    def daemon(self, node: int) -> int | None:
        """The process id of its checkpoint daemon."""
        worker = self.worker(node)
        found = [] if worker is None else [pid for pid in children(worker) if "checkpoint.daemon" in command_of(pid)]
        return next(iter(found), None)

    def step(self) -> int:
        """The last step of which node 0 has heard."""
        with self.log(0).open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 20_000))
            lines = log.read().decode("utf-8", "replace").splitlines()
        beats = [beat.step for line in lines if (beat := parse_heartbeat(line)) is not None]
        return beats[-1] if beats else committed_step(self.folder)

    @property
    def over(self) -> bool:
        """Whether all supervisors have ended."""
        return all(node.poll() is not None for node in self.nodes)

    def end(self) -> list[int]:
        """Wait for the supervisors' exit codes."""
        return [node.wait() for node in self.nodes]

    def kill(self) -> None:
        """End what is left."""
        for node in self.nodes:
            if node.poll() is None:
                for pid in [*family(node.pid), node.pid]:
                    kill(pid, signal.SIGKILL)
                node.wait()


def children(pid: int) -> list[int]:
    """The processes that `pid` has started."""
    with suppress(OSError):
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return []


def family(pid: int) -> list[int]:
    """All that descends from `pid`."""
    return [one for child in children(pid) for one in (child, *family(child))]


def command_of(pid: int) -> str:
    """A process's command line."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def kill(pid: int, number: signal.Signals) -> bool:
    """Send a signal; False when the process is gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
