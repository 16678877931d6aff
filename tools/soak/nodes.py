"""The nodes of a soaked run on this machine: each is a supervisor with one worker, restarted when it is lost."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from framework.launch.spec import local_spec
from framework.launch.supervisor.restart import RestartPolicy, committed_step
from framework.launch.supervisor.watchdog import HangRules
from framework.run.heartbeat import parse_heartbeat

NODES = 2
POLL_S = 0.2
RESTART = RestartPolicy(restarts=1000, max_attempts_without_progress=12, back_off_s=1.0, node_timeout_s=900.0)
"""A policy for runs that faults strike every minute."""
FLOOR_S = 15.0
MAX_SILENCE_S = 1800.0


class SoakedRun:
    """A run under supervision on `NODES` nodes. A node's supervisors and workers log to `node-<n>.log` in its folder.

    Args:
        folder: The run's folder.
        overrides: The arguments of `python -m framework`.
        environment: The environment of all processes.
        silent_s: How long the workers may show no sign of life outside of steps (s).
    """

    def __init__(
        self, folder: Path, overrides: Sequence[str], environment: Mapping[str, str], silent_s: float = MAX_SILENCE_S
    ) -> None:
        self.folder = folder
        self.environment = dict(environment)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        folder.mkdir(parents=True, exist_ok=True)
        hang = HangRules(floor_s=FLOOR_S, start_s=silent_s, checkpoint_s=silent_s, evaluate_s=silent_s)
        spec = local_spec(folder)
        replace(spec, overrides=tuple(overrides), nodes=NODES, hang=hang, restart=RESTART).save()
        self.nodes = [self._start(node) for node in range(NODES)]

    def log(self, node: int) -> Path:
        """The log of a node's supervisors and workers."""
        return self.folder / f"node-{node}.log"

    def _start(self, node: int) -> subprocess.Popen[bytes]:
        place = ["--node", str(node), "--address", f"127.0.0.1:{self.port}"]
        command = [sys.executable, "-m", "framework.launch.supervisor.main", "--folder", str(self.folder), *place]
        with self.log(node).open("ab") as log:
            return subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=self.environment, start_new_session=True
            )

    def lose(self, node: int) -> None:
        """Kill the supervisor of a node and all processes that it started, then start the node again."""
        for pid in [*descendants(self.nodes[node].pid), self.nodes[node].pid]:
            kill(pid, signal.SIGKILL)
        self.nodes[node].wait()
        time.sleep(2.0)
        self.nodes[node] = self._start(node)

    def worker(self, node: int) -> int | None:
        """The process id of a node's worker; None while there is none."""
        return next(iter(children(self.nodes[node].pid)), None)

    def daemon(self, node: int) -> int | None:
        """The process id of the worker's checkpoint daemon; None while there is none."""
        worker = self.worker(node)
        pids = [] if worker is None else [pid for pid in children(worker) if "checkpoint.daemon" in command_of(pid)]
        return next(iter(pids), None)

    def step(self) -> int:
        """The newest step in the log of node 0."""
        with self.log(0).open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 20_000))
            lines = log.read().decode("utf-8", "replace").splitlines()
        beats = [beat.step for line in lines if (beat := parse_heartbeat(line)) is not None]
        return beats[-1] if beats else committed_step(self.folder)

    @property
    def ended(self) -> bool:
        """Whether all supervisors have ended."""
        return all(node.poll() is not None for node in self.nodes)

    def wait(self) -> list[int]:
        """Wait for the supervisors, and return their exit codes."""
        return [node.wait() for node in self.nodes]

    def kill(self) -> None:
        """Kill what still runs."""
        for node in self.nodes:
            if node.poll() is None:
                for pid in [*descendants(node.pid), node.pid]:
                    kill(pid, signal.SIGKILL)
                node.wait()


def children(pid: int) -> list[int]:
    """The child processes of `pid`."""
    with suppress(OSError):
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return []


def descendants(pid: int) -> list[int]:
    """All descendants of `pid`."""
    return [one for child in children(pid) for one in (child, *descendants(child))]


def command_of(pid: int) -> str:
    """A process's command line."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def kill(pid: int, number: signal.Signals) -> bool:
    """Send a signal. Returns False when the process is gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
