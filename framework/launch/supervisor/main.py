"""The supervisor of a node: it keeps a run's workers going until the run is complete or no restart helps.

python -m framework.launch.supervisor.main --folder RUN
python -m framework.launch.supervisor.main --folder RUN --workers 8 [--nodes 4] -- recipe=demo ...

One supervisor runs on each node, whatever launched it. It reads the job and its settings from `job.json` in the run's
folder, which submitting the run wrote; for a run that was not submitted the second form gives workers and overrides,
and settings keep their defaults. The node's number and the address of node 0 come from options, Slurm's variables, or a
PyTorchJob's. Exit codes: see `exit_codes`.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from framework.launch.eval_jobs.sidecar import watcher_sidecar
from framework.launch.exit_codes import ExitCode
from framework.launch.spec import RunSpec, SpecError, load, local_spec
from framework.launch.supervisor.attempt import Attempt, GracePeriods, Outcome
from framework.launch.supervisor.coordinator import Agent, Coordinator
from framework.launch.supervisor.failure import Evidence, Failure, Kind
from framework.launch.supervisor.link import run_key
from framework.launch.supervisor.messages import Order
from framework.launch.supervisor.restart import Decision, FailureLedger, committed_step
from framework.launch.supervisor.watchdog import StepTimes
from framework.recipe.credentials import mask_output
from framework.run.folder import newest_attempt
from framework.run.key_file import KeyFileError
from framework.run.layout import JOB_FILE
from framework.run.logs import set_up_logging
from framework.run.phases import Phase, PhaseLedger, last_attempt, read_phases

log = logging.getLogger(__name__)

PORT = 29400
"""The coordinator's port where the launcher names none. Jobs of Slurm may share a node, so theirs are spread from here
over `PORTS`.
"""
PORTS = 2000
RECORD_S = 30.0
"""How long to wait for the other nodes' reports once this node was told to end (s): a part of what the scheduler's
notice leaves after `save_s`."""


class Supervisor:
    """Runs attempts as the coordinator orders them. `run` must be called on the main thread, which receives signals.

    Args:
        spec: The job.
        node: This node's number in the job. The supervisor of node 0 runs the coordinator.
        address: Host and port of the coordinator.
        command: What each worker runs; None: `python -m framework` with the job's overrides.
        grace: How long to wait for the workers; None: to save, as long as the scheduler's notice allows.
    """

    def __init__(
        self,
        spec: RunSpec,
        node: int,
        address: tuple[str, int],
        command: Sequence[str] | None = None,
        grace: GracePeriods | None = None,
    ) -> None:
        self.spec = spec
        self.folder = Path(spec.folder)
        self.node = node
        self.address = address
        self.command = command or [sys.executable, "-m", "framework", *spec.overrides]
        self.grace = grace or GracePeriods(save_s=spec.save_s)
        self.started = time.time()
        self.attempts = 0
        self.step: int | None = None
        self.stop_signal: signal.Signals | None = None
        self.step_times: StepTimes = {}
        self.began_at = 0
        self.folder.mkdir(parents=True, exist_ok=True)
        key, timeout_s = run_key(self.folder), spec.restart.node_timeout_s
        self.coordinator: Coordinator | None = None
        if node == 0:
            self.failures = FailureLedger(self.folder)
            listen = listening_host(address[0], spec.nodes), address[1]
            self.coordinator = Coordinator(
                spec.nodes, listen, spec.folder, key, self._next_attempt, self._decide, timeout_s
            )
            address = listen[0] or "127.0.0.1", self.coordinator.address[1]
        self.agent = Agent(node, address, spec.folder, key, timeout_s)

    def run(self) -> ExitCode:
        """Supervise the run to its end and return the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._on_signal)
        try:
            return self._follow_orders()
        except ConnectionError as error:
            log.error("%s; the job must be requeued", error)
            return ExitCode.REQUEUE
        finally:
            why = (
                None
                if self.stop_signal is None
                else f"job {os.environ.get('SLURM_JOB_ID', '')} received {self.stop_signal.name}"
            )
            self._ledger(last_attempt(self.folder)).begin(Phase.END, self.step, why=why)
            self.agent.close()

    def _follow_orders(self) -> ExitCode:
        self.agent.connect()
        while self.stop_signal is None:
            try:
                order = self.agent.next_order(timeout_s=0.2)
            except ConnectionResetError as error:
                log.warning("%s; waiting for another", error)
                self.agent.connect()
                continue
            if order is None:
                continue
            if order.action == "exit":
                return ExitCode(order.code)
            if order.action == "start":
                outcome = self._attempt(order)
                if outcome.exit_code is not None:
                    return ExitCode(outcome.exit_code)
                self.agent.report_end(outcome.done, outcome.failure, leaving=self.stop_signal is not None)
        self.agent.report_end(done=False, failure=None, leaving=True)  # of an attempt that was ordered just now
        # The coordinator ends with this process: what it has to record of the attempt comes first.
        decided = None if self.coordinator is None else self.coordinator.wait_for_end(RECORD_S)
        if decided in (ExitCode.DONE, ExitCode.STOP):
            return decided
        return ExitCode.REQUEUE if self.stop_signal is signal.SIGUSR1 else ExitCode.TERMINATED

    def _attempt(self, order: Order) -> Outcome:
        self._enter_start(order.attempt)
        attempt = Attempt(
            self.spec,
            self.node,
            self.command,
            order.attempt,
            (self.address[0], order.port),
            self.step_times,
            self.grace,
            stop_signal=lambda: self.stop_signal,
            next_order=lambda: self.agent.next_order(timeout_s=0.001),
        )
        outcome = attempt.run()
        self.step = attempt.step
        return outcome

    def _enter_start(self, attempt: int) -> None:
        """Record the start. The first attempt's began with this process; before that the job was queued, since its
        submission or since the node was last heard of.
        """
        ledger = self._ledger(attempt)
        if self.attempts == 0:
            lines, submitted = read_phases(self.folder).get(ledger.node, []), self.folder / JOB_FILE
            if lines:
                ledger.begin(Phase.QUEUE, at=lines[-1].time)
            elif submitted.exists():
                ledger.begin(Phase.QUEUE, at=submitted.stat().st_mtime)
        ledger.begin(Phase.START, at=self.started if self.attempts == 0 else None)
        self.attempts += 1

    def _ledger(self, attempt: int) -> PhaseLedger:
        return PhaseLedger(self.folder, attempt, self.node, self.spec.devices)

    def _next_attempt(self) -> int:
        self.began_at = committed_step(self.folder)
        return 1 + max(newest_attempt(self.folder), last_attempt(self.folder))

    def _decide(self, attempt: int, failure: Failure) -> Decision:
        if failure.kind is Kind.PREEMPTION and failure.evidence is Evidence.REQUESTED:
            return Decision("no failure: whoever told it to end knows whether it continues")
        self.failures.add(attempt, failure, self.began_at)
        return self.spec.restart.decide(self.failures.history)

    def _on_signal(self, number: int, _: Any) -> None:
        self.stop_signal = decisive_signal(self.stop_signal, number)


def decisive_signal(earlier: signal.Signals | None, number: int) -> signal.Signals:
    """Return the signal by which a supervisor ends that received `earlier`, if any, and now `number`. The notice that
    the wall time is nearly up, SIGUSR1, does not requeue a job that was told to end.
    """
    return signal.SIGUSR1 if number == signal.SIGUSR1 and earlier is not signal.SIGTERM else signal.SIGTERM


def node_of(environment: Mapping[str, str]) -> tuple[int, int]:
    """Return this node's number and the number of nodes, as Slurm or a PyTorchJob (whose WORLD_SIZE counts pods) set
    them.
    """
    node = environment.get("SLURM_NODEID") or environment.get("RANK") or "0"
    nodes = environment.get("SLURM_NNODES") or environment.get("WORLD_SIZE") or "1"
    return int(node), int(nodes)


def address_of(environment: Mapping[str, str]) -> tuple[str, int]:
    """Return the host of node 0 and the coordinator's port there. Under Slurm the host is the one where srun runs: the
    job's first node.
    """
    host = environment.get("MASTER_ADDR") or environment.get("SLURM_LAUNCH_NODE_IPADDR") or "127.0.0.1"
    job = int(environment.get("SLURM_JOB_ID") or 0)
    return host, int(environment.get("MASTER_PORT") or PORT + job % PORTS)


def listening_host(host: str, nodes: int) -> str:
    """Return where the coordinator of a job of `nodes` nodes listens: on this machine alone for one node, else at the
    address `host` by which the others know node 0. Empty, for every address of this node, where that name is none of
    this node's addresses, or a PyTorchJob calls its master `localhost`.
    """
    if nodes == 1:
        return "127.0.0.1"
    if host == "localhost":
        return ""
    try:
        with socket.create_server((host, 0)):
            return host
    except OSError as error:
        log.warning("%s is no address of this node (%s): the coordinator listens at all of them", host, error)
        return ""


def parse_arguments(arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[RunSpec, int, tuple[str, int]]:
    """Return the job, this node's number and the coordinator's address. The command line takes precedence over
    `job.json`, and both over the launcher's variables. Raises `SpecError` for a `job.json` that cannot be read.
    """
    parser = argparse.ArgumentParser(prog="python -m framework.launch.supervisor.main", description="Supervise a node.")
    parser.add_argument("--folder", type=Path, required=True, help="the run's folder, shared by all nodes")
    parser.add_argument("--workers", type=int, help="workers on each node, one per GPU (default: as submitted)")
    parser.add_argument("--nodes", type=int, help="nodes of the job (default: as submitted)")
    parser.add_argument("--node", type=int, help="this node's number (default: the launcher's variables)")
    parser.add_argument("--address", help="HOST:PORT of node 0 (default: the launcher's variables)")
    parser.add_argument("overrides", nargs="*", help="-- arguments of `python -m framework` (default: as submitted)")
    options = parser.parse_args(arguments)
    folder = options.folder.absolute()
    node, nodes = node_of(environment)
    submitted = (folder / JOB_FILE).is_file()
    if not submitted and not (options.workers and options.overrides):
        parser.error(f"{folder / JOB_FILE}: not there; give --workers N -- recipe=NAME ...")
    spec = load(folder) if submitted else replace(local_spec(folder), nodes=nodes)
    spec = replace(
        spec,
        folder=str(folder),
        devices=options.workers or spec.devices,
        nodes=options.nodes or spec.nodes,
        overrides=tuple(options.overrides) or spec.overrides,
    )
    address = address_of(environment)
    if options.address is not None:
        host, _, port = options.address.rpartition(":")
        address = host, int(port)
    elif spec.nodes == 1:
        address = "127.0.0.1", 0
    return spec, node if options.node is None else options.node, address


def main(arguments: Sequence[str] | None = None) -> int:
    """Supervise what the command line says; returns the exit code."""
    if arguments is None:  # a process of its own
        mask_output()
    set_up_logging("supervisor")
    try:
        spec, node, address = parse_arguments(sys.argv[1:] if arguments is None else arguments, os.environ)
    except SpecError as error:
        log.error("%s", error)
        return ExitCode.STOP
    try:
        with watcher_sidecar(Path(spec.folder)) if node == 0 else nullcontext():
            return Supervisor(spec, node, address).run()
    except KeyFileError as error:
        log.error("%s", error)
        return ExitCode.STOP


if __name__ == "__main__":
    sys.exit(main())
