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
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from framework.launch.supervisor.failure import WorkerExit
from framework.run.heartbeat import Heartbeat, parse_heartbeat
from framework.run.worker import ATTEMPT, DUMP, STACKS, SUPERVISOR

TAIL = 200
"""Lines of a worker's standard error that are kept to tell why it failed."""
DUMP_S = 5.0
"""How long stacks may take to be written (s)."""
POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Place:
    """Where this node's workers are in the job: `node` of `nodes`, with `workers` on each of them."""

    node: int
    nodes: int
    workers: int

    def ranks(self) -> range:
        """The ranks of this node's workers."""
        return range(self.node * self.workers, (self.node + 1) * self.workers)


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where all ranks of `attempt` meet: torch.distributed's address and port."""

    attempt: int
    address: str
    port: int


class Workers:
    """Processes of `command`, each the leader of a group, so that what it started is reaped with it.

    What they say is passed on, standard output and error each; with several, lines on standard error tell the rank.
    `on_beat` hears every heartbeat of the first; it is called on another thread.
    """

    def __init__(
        self,
        command: Sequence[str],
        place: Place,
        meeting: Meeting,
        folder: Path,
        on_beat: Callable[[Heartbeat], None],
    ) -> None:
        self.place = place
        self.stacks = folder / f"attempt-{meeting.attempt}" / "stacks"
        self.stacks.mkdir(parents=True, exist_ok=True)
        self.on_beat = on_beat
        self.tails: list[deque[str]] = [deque(maxlen=TAIL) for _ in place.ranks()]
        self.order: list[int] = []
        self.readers: list[threading.Thread] = []
        self.processes: list[subprocess.Popen[str]] = []
        for local, rank in enumerate(place.ranks()):
            process = subprocess.Popen(
                command, env=os.environ | self._variables(local, rank, meeting), process_group=0, text=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, errors="replace",
            )  # fmt: skip
            self.processes.append(process)
            for stream, listen in ((process.stdout, self._pass_on), (process.stderr, self._keep)):
                reader = threading.Thread(target=listen, args=(local, stream), daemon=True)
                reader.start()
                self.readers.append(reader)

    def _variables(self, local: int, rank: int, meeting: Meeting) -> dict[str, str]:
        place = self.place
        threads = {} if place.workers == 1 else {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        return threads | {
            "RANK": str(rank),
            "LOCAL_RANK": str(local),
            "WORLD_SIZE": str(place.nodes * place.workers),
            "LOCAL_WORLD_SIZE": str(place.workers),
            "GROUP_RANK": str(place.node),
            "GROUP_WORLD_SIZE": str(place.nodes),
            "MASTER_ADDR": meeting.address,
            "MASTER_PORT": str(meeting.port),
            "TORCHELASTIC_RUN_ID": f"attempt-{meeting.attempt}",  # by which Lightning knows that it need start nothing
            "PYTHONUNBUFFERED": "1",
            ATTEMPT: str(meeting.attempt),
            STACKS: str(self.stacks),
            SUPERVISOR: str(os.getpid()),
            # NCCL's flight recorder: the last collectives, dumped when its own time-out strikes or `dump` asks.
            "TORCH_NCCL_TRACE_BUFFER_SIZE": os.environ.get("TORCH_NCCL_TRACE_BUFFER_SIZE", "2000"),
            "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
            "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": str(self.stacks / "nccl-rank-"),
            "TORCH_NCCL_DEBUG_INFO_PIPE_FILE": str(self.stacks / "nccl-pipe-"),
        }

    def ended(self) -> list[WorkerExit]:
        """Workers that have ended, in the order in which that was seen."""
        for local, process in enumerate(self.processes):
            if local not in self.order and process.poll() is not None:
                self.order.append(local)
        return [self._exit(local) for local in self.order]

    def _exit(self, local: int) -> WorkerExit:
        code = self.processes[local].returncode
        return WorkerExit(self.place.ranks()[local], code, "\n".join(self.tails[local]))

    @property
    def running(self) -> int:
        """How many have not ended."""
        return sum(process.poll() is None for process in self.processes)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the workers, not to what they started."""
        for process in self.processes:
            with suppress(ProcessLookupError):
                if process.poll() is None:
                    process.send_signal(number)

    def wait(self, within_s: float) -> bool:
        """Whether all have ended within so many seconds."""
        end = time.monotonic() + within_s
        while self.running and time.monotonic() < end:
            time.sleep(POLL_S)
        return not self.running

    def dump(self) -> list[str]:
        """Have each worker write the stacks of its threads into `stacks`, and NCCL what it recorded. Returns what the
        kernel says of workers that neither run nor wait. One that was stopped goes on for as long as it writes, and no
        longer: other nodes' workers are to be found as they hang.
        """
        states = {process: _state(process.pid) for process in self.processes}
        stopped = [process for process, state in states.items() if state in ("T", "t")]
        for rank in self.place.ranks():
            with suppress(OSError):  # no pipe: no NCCL
                pipe = os.open(self.stacks / f"nccl-pipe-{rank}.pipe", os.O_WRONLY | os.O_NONBLOCK)
                os.write(pipe, b"1")
                os.close(pipe)
        self.signal(DUMP)
        for process in stopped:
            process.send_signal(signal.SIGCONT)
        end = time.monotonic() + DUMP_S
        while time.monotonic() < end and any(not self._has_written(rank) for rank in self.place.ranks()):
            time.sleep(POLL_S)
        for process in stopped:
            process.send_signal(signal.SIGSTOP)
        ranks = zip(self.place.ranks(), states.values(), strict=True)
        return [f"rank {rank} is {STATES[state]}" for rank, state in ranks if state in STATES]

    def _has_written(self, rank: int) -> bool:
        file = self.stacks / f"rank-{rank}.txt"
        return file.is_file() and file.stat().st_size > 0

    def reap(self, grace_s: float) -> None:
        """End all workers and whatever they started; they have `grace_s` seconds to do so by themselves."""
        if self.running:
            self.signal(signal.SIGTERM)
            self.wait(grace_s)
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for reader in self.readers:
            reader.join(timeout=1.0)

    def _pass_on(self, local: int, stream: IO[str]) -> None:
        for line in stream:
            if local == 0 and (beat := parse_heartbeat(line)) is not None:
                self.on_beat(beat)
            print(line, end="", flush=True)

    def _keep(self, local: int, stream: IO[str]) -> None:
        title = f"[rank {self.place.ranks()[local]}] " if self.place.nodes * self.place.workers > 1 else ""
        for line in stream:
            self.tails[local].append(line.rstrip("\n"))
            print(f"{title}{line}", end="", file=sys.stderr, flush=True)


STATES = {"T": "stopped", "t": "traced", "D": "waiting for a disk or a device", "Z": "dead"}
"""Of /proc/PID/stat, those in which a worker should not be found."""


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
