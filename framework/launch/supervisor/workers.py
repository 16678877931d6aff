"""The workers of one node in one attempt: started with torchrun's variables, listened to, signalled, reaped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from framework.launch.spec import RunSpec
from framework.launch.supervisor.failure import WorkerExit
from framework.run.heartbeat import Heartbeat, parse_heartbeat
from framework.run.worker import ATTEMPT, DUMP, STACKS, SUPERVISOR

TAIL_LINES = 200
"""Lines of a worker's standard error that are kept to classify its failure."""
DUMP_TIMEOUT_S = 5.0
"""How long writing the stacks may take (s)."""
POLL_S = 0.05
ABNORMAL_STATES = {"T": "stopped", "t": "traced", "D": "waiting for a disk or a device", "Z": "dead"}
"""States in /proc/PID/stat in which no healthy worker is found."""


class Workers:
    """The worker processes of one node. Each leads a process group, so that whatever it started is reaped with it.

    Their standard output and standard error are passed on. In a job of several workers a line on standard error names
    the rank.

    Args:
        command: What each worker runs.
        spec: The job: its folder, its nodes, its workers on each node.
        node: This node's number in the job.
        attempt: The attempt's number.
        rendezvous: Host and port where all ranks of the attempt meet, torch.distributed's master.
        on_beat: Called with each heartbeat of the node's first worker, on a thread of its own.
    """

    def __init__(
        self,
        command: Sequence[str],
        spec: RunSpec,
        node: int,
        attempt: int,
        rendezvous: tuple[str, int],
        on_beat: Callable[[Heartbeat], None],
    ) -> None:
        self.ranks = range(node * spec.devices, (node + 1) * spec.devices)
        self.world_size = spec.nodes * spec.devices
        self.stacks = Path(spec.folder) / f"attempt-{attempt}" / "stacks"
        self.stacks.mkdir(parents=True, exist_ok=True)
        self.on_beat = on_beat
        self.tails: list[deque[str]] = [deque(maxlen=TAIL_LINES) for _ in self.ranks]
        self.ended_order: list[int] = []
        self.readers: list[threading.Thread] = []
        self.processes: list[subprocess.Popen[str]] = []
        variables = os.environ | self._variables(spec, node, attempt, rendezvous)
        for local, rank in enumerate(self.ranks):
            process = subprocess.Popen(
                command, env=variables | {"RANK": str(rank), "LOCAL_RANK": str(local)}, process_group=0, text=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, errors="replace",
            )  # fmt: skip
            self.processes.append(process)
            for stream, read in ((process.stdout, self._read_output), (process.stderr, self._read_errors)):
                reader = threading.Thread(target=read, args=(local, stream), daemon=True)
                reader.start()
                self.readers.append(reader)

    def _variables(self, spec: RunSpec, node: int, attempt: int, rendezvous: tuple[str, int]) -> dict[str, str]:
        threads = {} if spec.devices == 1 else {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        return threads | {
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_WORLD_SIZE": str(spec.devices),
            "GROUP_RANK": str(node),
            "GROUP_WORLD_SIZE": str(spec.nodes),
            "MASTER_ADDR": rendezvous[0],
            "MASTER_PORT": str(rendezvous[1]),
            "TORCHELASTIC_RUN_ID": f"attempt-{attempt}",  # by which Lightning knows that it need start nothing
            "PYTHONUNBUFFERED": "1",
            ATTEMPT: str(attempt),
            STACKS: str(self.stacks),
            SUPERVISOR: str(os.getpid()),
            # NCCL's flight recorder: the last collectives, dumped when NCCL's own timeout strikes or `dump` asks.
            "TORCH_NCCL_TRACE_BUFFER_SIZE": os.environ.get("TORCH_NCCL_TRACE_BUFFER_SIZE", "2000"),
            "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
            "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": str(self.stacks / "nccl-rank-"),
            "TORCH_NCCL_DEBUG_INFO_PIPE_FILE": str(self.stacks / "nccl-pipe-"),
        }

    def ended(self) -> list[WorkerExit]:
        """Return the ends of the workers, in the order in which they were noticed."""
        for local, process in enumerate(self.processes):
            if local not in self.ended_order and process.poll() is not None:
                self.ended_order.append(local)
        return [self._exit(local) for local in self.ended_order]

    def _exit(self, local: int) -> WorkerExit:
        code = self.processes[local].returncode
        return WorkerExit(self.ranks[local], code, "\n".join(self.tails[local]))

    @property
    def running(self) -> int:
        """Number of workers that have not ended."""
        return sum(process.poll() is None for process in self.processes)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the workers, but not to what they started."""
        for process in self.processes:
            with suppress(ProcessLookupError):
                if process.poll() is None:
                    process.send_signal(number)

    def wait(self, timeout_s: float) -> bool:
        """Wait for the workers' end. Returns whether all have ended within `timeout_s` seconds."""
        deadline = time.monotonic() + timeout_s
        while self.running and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return not self.running

    def dump(self) -> list[str]:
        """Have each worker write the stacks of its threads into `stacks`, and NCCL its record. Returns what the kernel
        says of workers in an abnormal state.

        A stopped worker is continued while it writes, and stopped again, so that other nodes' workers are found as they
        hang.
        """
        states = {process: _state(process.pid) for process in self.processes}
        stopped = [process for process, state in states.items() if state in ("T", "t")]
        for rank in self.ranks:
            with suppress(OSError):  # no pipe: no NCCL
                pipe = os.open(self.stacks / f"nccl-pipe-{rank}.pipe", os.O_WRONLY | os.O_NONBLOCK)
                os.write(pipe, b"1")
                os.close(pipe)
        self.signal(DUMP)
        for process in stopped:
            process.send_signal(signal.SIGCONT)
        deadline = time.monotonic() + DUMP_TIMEOUT_S
        while time.monotonic() < deadline and any(not self._has_written(rank) for rank in self.ranks):
            time.sleep(POLL_S)
        for process in stopped:
            process.send_signal(signal.SIGSTOP)
        by_rank = zip(self.ranks, states.values(), strict=True)
        return [f"rank {rank} is {ABNORMAL_STATES[state]}" for rank, state in by_rank if state in ABNORMAL_STATES]

    def _has_written(self, rank: int) -> bool:
        file = self.stacks / f"rank-{rank}.txt"
        return file.is_file() and file.stat().st_size > 0

    def reap(self, grace_s: float) -> None:
        """End all workers and whatever they started, by SIGTERM first and by SIGKILL after `grace_s` seconds."""
        if self.running:
            self.signal(signal.SIGTERM)
            self.wait(grace_s)
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for reader in self.readers:
            reader.join(timeout=1.0)

    def _read_output(self, local: int, stream: IO[str]) -> None:
        for line in stream:
            if local == 0 and (beat := parse_heartbeat(line)) is not None:
                self.on_beat(beat)
            print(line, end="", flush=True)

    def _read_errors(self, local: int, stream: IO[str]) -> None:
        prefix = f"[rank {self.ranks[local]}] " if self.world_size > 1 else ""
        for line in stream:
            self.tails[local].append(line.rstrip("\n"))
            print(f"{prefix}{line}", end="", file=sys.stderr, flush=True)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
