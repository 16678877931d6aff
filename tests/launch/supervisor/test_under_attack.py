"""Two nodes train while strangers attack the coordinator: the run ends as if nobody had."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from framework.launch.exit_codes import ExitCode
from framework.launch.supervisor.restart import FailureLedger
from framework.run.drops import read_drop_counts
from tests.launch.supervisor.test_main import free_port
from tests.processes import UNEVALUATED
from tools.soak.verdict import differences

REPOSITORY = Path(__file__).resolve().parents[3]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
CONNECTIONS = 10_000
LONG_LINE = 1 << 30
RECIPE = (
    *UNEVALUATED, "parallel.devices=1", "checkpoint.every=4", "curriculum.max_steps_per_stage=8",
)  # fmt: skip


def train(folder: Path, cache: Path, port: int) -> list[subprocess.Popen[bytes]]:
    """The supervisors of two nodes of one worker each, on this machine."""
    overrides = [*RECIPE, f"run.folder={folder}", f"paths.cache={cache}"]
    command = [sys.executable, "-m", "framework.launch.supervisor.main", "--folder", str(folder), "--workers", "1"]
    command += ["--nodes", "2", "--address", f"127.0.0.1:{port}"]
    folder.mkdir(parents=True)
    nodes = []
    for node in ("0", "1"):
        with (folder / f"node-{node}.log").open("wb") as log:
            arguments = [*command, "--node", node, "--", *overrides]
            nodes.append(subprocess.Popen(arguments, cwd=REPOSITORY, stdout=log, stderr=log, env=dict(os.environ)))
    return nodes


class Attackers:
    """Strangers at `port`, until they are told to stop."""

    def __init__(self, port: int) -> None:
        self.address = ("127.0.0.1", port)
        self.stop = threading.Event()
        self.done: Counter[str] = Counter()
        recorded: list[bytes] = []
        attacks = [self.crowd] * 8 + [self.endless, self.silent, lambda: self.listens(recorded)]
        attacks += [lambda: self.replays(recorded)]
        self.threads = [threading.Thread(target=attack, daemon=True) for attack in attacks]
        for thread in self.threads:
            thread.start()

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=5)

    def crowd(self) -> None:
        while not self.stop.is_set() and self.done["connections"] < CONNECTIONS:
            with contextlib.suppress(OSError), self.connect() as stranger:
                self.done["connections"] += 1
                stranger.sendall(b'{"node": 1, "event": "ended", "done": true}\n')

    def endless(self) -> None:
        block = b"x" * (1 << 20)
        while not self.stop.is_set() and self.done["bytes of lines"] < LONG_LINE:
            with contextlib.suppress(OSError), self.connect() as stranger:
                self.done["lines"] += 1
                for _ in range(LONG_LINE // len(block)):
                    stranger.sendall(block)
                    self.done["bytes of lines"] += len(block)

    def silent(self) -> None:
        while not self.stop.wait(0.5):
            with contextlib.suppress(OSError):
                held = [self.connect() for _ in range(20)]
                self.done["held open"] += len(held)
                self.stop.wait(6)

    def listens(self, recorded: list[bytes]) -> None:
        while not self.stop.wait(0.2):
            with contextlib.suppress(OSError), self.connect() as stranger:
                recorded.append(stranger.recv(4096))

    def replays(self, recorded: list[bytes]) -> None:
        while not self.stop.wait(0.2):
            with contextlib.suppress(OSError), self.connect() as stranger:
                stranger.sendall(b"".join(recorded[-20:]))
                self.done["replays"] += 1
                stranger.recv(4096)


@pytest.mark.attack(
    "coordinator", "10,000 connections, lines of 1 GB and replays while two nodes train", "the run ends bit-equal"
)
def test_a_run_under_attack_ends_bit_equal_to_the_undisturbed_one(tmp_path: Path) -> None:
    began = time.monotonic()
    undisturbed = train(tmp_path / "undisturbed", tmp_path / "cache", free_port())
    assert [node.wait() for node in undisturbed] == [ExitCode.DONE] * 2, logs(tmp_path / "undisturbed")
    middle, port = time.monotonic(), free_port()
    struck = train(tmp_path / "struck", tmp_path / "cache", port)
    attackers = Attackers(port)
    resident = 0
    while any(node.poll() is None for node in struck):
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{struck[0].pid}/status").read_text().splitlines()
            resident = max(resident, next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")))
        time.sleep(0.2)
    attackers.stop.set()
    counts = read_drop_counts(tmp_path / "struck")
    seconds = f"{middle - began:.0f} s undisturbed, {time.monotonic() - middle:.0f} s under attack"
    print(f"{seconds}; tried {dict(attackers.done)}; dropped {counts}; supervisor {resident / 1000:.0f} MB")
    assert [node.wait() for node in struck] == [ExitCode.DONE] * 2, logs(tmp_path / "struck")
    assert list(differences(tmp_path / "struck", tmp_path / "undisturbed")) == []
    assert FailureLedger(tmp_path / "struck").history == []
    assert resident < 200_000
    assert counts["malformed"] > 0
    assert counts["overlong"] > 0


def logs(folder: Path) -> str:
    return "\n".join(file.read_text()[-3000:] for file in folder.glob("node-*.log"))
