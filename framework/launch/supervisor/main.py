"""The supervisor of a node: keeps the workers of a run going until it is done, or until that is hopeless.

python -m framework.launch.supervisor.main --folder RUN --workers 8 [--nodes 4] -- recipe=demo ...

What follows `--` are words of `python -m framework`. One supervisor runs on each node, under any launcher: it takes the
node's number and the address of node 0 from options, Slurm's variables, or a PyTorchJob's. Exit codes: see `restart`.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from framework.launch.eval_jobs.sidecar import watched
from framework.launch.supervisor.attempt import Attempt, Grace, Outcome
from framework.launch.supervisor.coordinator import Council, Member, Order
from framework.launch.supervisor.failure import Failure
from framework.launch.supervisor.restart import REQUEUE, TOLD, FailureLedger, RestartPolicy, Verdict, committed_step
from framework.launch.supervisor.watchdog import HangRules, Steps
from framework.launch.supervisor.workers import Meeting, Place
from framework.run.folder import attempts_begun
from framework.run.layout import JOB_FILE
from framework.run.phases import Phase, PhaseLedger, last_attempt, read_phases

log = logging.getLogger(__name__)

Settings = TypeVar("Settings", HangRules, RestartPolicy, Grace)
PORT = 29400
"""Where the council sits, unless the launcher says otherwise; jobs of Slurm, which may share a node, count on."""
PORTS = 2000


@dataclass(frozen=True)
class Job:
    """What is supervised: `command` as the workers at `place` of the run in `folder`; nodes meet at `address`, and wait
    for one that is away `patience_s` seconds.
    """

    folder: Path
    command: Sequence[str]
    place: Place
    address: tuple[str, int] = ("127.0.0.1", 0)
    patience_s: float = 600.0
    rules: HangRules = field(default_factory=HangRules)
    restarts: RestartPolicy = field(default_factory=RestartPolicy)
    grace: Grace = field(default_factory=Grace)


class Supervisor:
    """See the module. `run` must be called on the main thread, which signals come to."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.began = time.time()
        self.attempts = 0
        self.step: int | None = None
        self.told: signal.Signals | None = None
        self.steps: Steps = {}
        self.council: Council | None = None
        self.began_at = 0
        address = job.address
        if job.place.node == 0:
            self.failures = FailureLedger(job.folder)
            run = str(job.folder)
            host = "127.0.0.1" if job.place.nodes == 1 else ""
            self.council = Council(
                job.place.nodes, (host, address[1]), run, self._next_attempt, self._judge, job.patience_s
            )
            address = ("127.0.0.1", self.council.address[1])
        self.member = Member(job.place.node, address, str(job.folder), job.patience_s)

    def run(self) -> int:
        """Supervise to the end; returns the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._notice)
        try:
            return self._obey()
        except ConnectionError as error:
            log.error("%s; the job is to be requeued", error)
            return REQUEUE
        finally:
            self._ledger(last_attempt(self.job.folder)).begin(Phase.END, self.step)
            self.member.leave()

    def _obey(self) -> int:
        self.member.sit()
        while self.told is None:
            try:
                order = self.member.order(within_s=0.2)
            except ConnectionResetError as error:
                log.warning("%s; waiting for another", error)
                self.member.sit()
                continue
            if order is None:
                continue
            if order.word == "exit":
                return order.code
            if order.word == "start":
                outcome = self._attempt(order)
                self.member.ended(outcome.done, outcome.failure)
        return REQUEUE if self.told is signal.SIGUSR1 else TOLD

    def _attempt(self, order: Order) -> Outcome:
        job = self.job
        self._enter_start(order.attempt)
        meeting = Meeting(order.attempt, job.address[0], order.port)
        attempt = Attempt(
            job.command, job.place, meeting, job.folder, job.rules, self.steps, job.grace,
            lambda: self.told, lambda: self.member.order(within_s=0.001),
        )  # fmt: skip
        outcome = attempt.run()
        self.step = attempt.step
        return outcome

    def _enter_start(self, attempt: int) -> None:
        """The first attempt's start began with this process, and before that the job was queued: since it was
        submitted, or since the node was last heard of.
        """
        ledger, folder = self._ledger(attempt), self.job.folder
        if self.attempts == 0:
            lines, submitted = read_phases(folder).get(ledger.node, []), folder / JOB_FILE
            if lines:
                ledger.begin(Phase.QUEUE, at=lines[-1].time)
            elif submitted.exists():
                ledger.begin(Phase.QUEUE, at=submitted.stat().st_mtime)
        ledger.begin(Phase.START, at=self.began if self.attempts == 0 else None)
        self.attempts += 1

    def _ledger(self, attempt: int) -> PhaseLedger:
        return PhaseLedger(self.job.folder, attempt, self.job.place.node, self.job.place.workers)

    def _next_attempt(self) -> int:
        self.began_at = committed_step(self.job.folder)
        return 1 + max(attempts_begun(self.job.folder), last_attempt(self.job.folder))

    def _judge(self, attempt: int, failure: Failure) -> Verdict:
        self.failures.add(attempt, failure, self.began_at)
        return self.job.restarts.judge(self.failures.history)

    def _notice(self, number: int, _: Any) -> None:
        self.told = signal.SIGUSR1 if number == signal.SIGUSR1 else signal.SIGTERM


def place_of(environment: Mapping[str, str], workers: int, nodes: int | None) -> Place:
    """Where this node is in the job, as Slurm or a PyTorchJob (whose WORLD_SIZE counts pods) tell it."""
    node = environment.get("SLURM_NODEID") or environment.get("RANK") or "0"
    told = environment.get("SLURM_NNODES") or environment.get("WORLD_SIZE") or "1"
    return Place(int(node), nodes or int(told), workers)


def address_of(environment: Mapping[str, str]) -> tuple[str, int]:
    """Where node 0 is, and the council's port there. Under Slurm that is where srun runs: the job's first node."""
    host = environment.get("MASTER_ADDR") or environment.get("SLURM_LAUNCH_NODE_IPADDR") or "127.0.0.1"
    job = int(environment.get("SLURM_JOB_ID") or 0)
    return host, int(environment.get("MASTER_PORT") or PORT + job % PORTS)


def parse(arguments: Sequence[str], environment: Mapping[str, str]) -> Job:
    """The job that the command line and the launcher's variables describe."""
    parser = argparse.ArgumentParser(prog="python -m framework.launch.supervisor.main", description="Supervise a node.")
    parser.add_argument("--folder", type=Path, required=True, help="the run's folder, shared by all nodes")
    parser.add_argument("--workers", type=int, required=True, help="workers on each node, one to a GPU")
    parser.add_argument("--nodes", type=int, help="default: as the launcher says")
    parser.add_argument("--node", type=int, help="this node's number; default: as the launcher says")
    parser.add_argument("--address", help="HOST:PORT of node 0; default: as the launcher says")
    parser.add_argument("--patience", type=float, default=600.0, help="wait so long for a node that is away (s)")
    for settings in (HangRules(), RestartPolicy(), Grace()):
        for name, default in asdict(settings).items():
            word = f"--{name.replace('_', '-')}"
            parser.add_argument(word, type=type(default), default=default, help=f"see {type(settings).__name__}")
    parser.add_argument("words", nargs="+", help="-- words of `python -m framework`")
    options = parser.parse_args(arguments)
    place = place_of(environment, options.workers, options.nodes)
    address = address_of(environment)
    if options.node is not None:
        place = Place(options.node, place.nodes, place.workers)
    if options.address is not None:
        host, _, port = options.address.rpartition(":")
        address = host, int(port)
    elif place.nodes == 1:
        address = "127.0.0.1", 0
    command = [sys.executable, "-m", "framework", *options.words]
    return Job(
        options.folder.absolute(), command, place, address, options.patience,
        _chosen(HangRules(), options), _chosen(RestartPolicy(), options), _chosen(Grace(), options),
    )  # fmt: skip


def _chosen(settings: Settings, options: argparse.Namespace) -> Settings:
    """The settings as the options have them."""
    return replace(settings, **{name: getattr(options, name) for name in asdict(settings)})


def main(arguments: Sequence[str] | None = None) -> int:
    """Supervise what the command line says; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s supervisor: %(message)s")
    job = parse(sys.argv[1:] if arguments is None else arguments, os.environ)
    job.folder.mkdir(parents=True, exist_ok=True)
    with watched(job.folder) if job.place.node == 0 else nullcontext():
        return Supervisor(job).run()


if __name__ == "__main__":
    sys.exit(main())
