"""The coordination of the nodes' supervisors: all start an attempt together, and all end it together.

The coordinator runs in the supervisor of node 0; an agent in each supervisor connects to it by TCP. When one node's
workers fail, or a node is lost, all nodes stop theirs; when all are back, the coordinator orders the next attempt, or
the end. Whoever does not hold the run's key is turned away by the `Listener`.
"""

from __future__ import annotations

import logging
import queue
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from framework.launch.exit_codes import ExitCode
from framework.launch.host import free_port
from framework.launch.supervisor.failure import Evidence, Failure, Kind, root_cause
from framework.launch.supervisor.link import Link
from framework.launch.supervisor.listener import DropCounts, Listener
from framework.launch.supervisor.messages import Order, Report, parse_order, parse_report
from framework.launch.supervisor.restart import Decision

log = logging.getLogger(__name__)

CONNECT_S = 5.0
"""Timeout of one try to connect (s)."""


class Coordinator:
    """Orders the attempts of all nodes. Constructing it opens the port, and raises `OSError` where that is taken.

    Args:
        nodes: Nodes of the job.
        address: Where to listen, host and port; port 0 picks a free one.
        run: The run's folder. Agents of another run are turned away.
        key: The run's key. Whoever does not hold it is turned away.
        next_attempt: Returns the number of the attempt that starts now.
        decide: Returns what follows an attempt that failed.
        node_timeout_s: How long to wait for missing nodes (s) before the job is requeued.
    """

    def __init__(
        self,
        nodes: int,
        address: tuple[str, int],
        run: str,
        key: bytes,
        next_attempt: Callable[[], int],
        decide: Callable[[int, Failure], Decision],
        node_timeout_s: float,
    ) -> None:
        self.nodes = nodes
        self.next_attempt = next_attempt
        self.decide = decide
        self.node_timeout_s = node_timeout_s
        self.attempt = 0
        self.agents: dict[int, Link] = {}
        self.running: set[int] = set()
        self.failures: list[Failure] = []
        self.not_before = 0.0
        self.waiting_since = time.monotonic()
        self.code: ExitCode | None = None
        self.between_attempts = threading.Event()
        self.between_attempts.set()
        self.reports: queue.Queue[tuple[Link, Report]] = queue.Queue()
        self.drops = DropCounts(Path(run))
        self.address = Listener(address, key, run, self._listen, self.drops).address
        threading.Thread(target=self._coordinate, daemon=True).start()

    def wait_for_end(self, timeout_s: float) -> ExitCode | None:
        """Wait until the attempt has ended on all nodes and its failure is recorded, but `timeout_s` seconds at most.
        Return with what the job ends; None where that is not decided.
        """
        self.between_attempts.wait(timeout_s)
        return self.code

    def _listen(self, link: Link) -> None:
        """Queue the reports that come over a link. Its first one names the node that it speaks for from then on."""
        nodes: list[int] = []

        def receive(fields: dict[str, Any]) -> None:
            report = parse_report(fields, self.nodes)
            if nodes and nodes != [report.node]:
                raise ValueError(f"a report of node {report.node} over the link of node {nodes[0]}")
            nodes[:] = [report.node]
            self.reports.put((link, report))

        link.listen(receive)
        for node in nodes:
            self.reports.put((link, Report(node, "lost")))

    def _coordinate(self) -> None:
        try:
            while self.code is None:
                with suppress(queue.Empty):
                    link, report = self.reports.get(timeout=0.1)
                    self._handle(link, report)
                self.drops.report()
                if not self.running and self.code is None:
                    self._start_next()
        except Exception:
            log.exception("the coordinator cannot continue")
            self._finish(ExitCode.STOP)

    def _handle(self, link: Link, report: Report) -> None:
        node = report.node
        if report.event == "ready":
            if (previous := self.agents.get(node)) is not None and previous is not link:
                previous.close()
            self.agents[node] = link
        elif self.agents.get(node) is not link:
            return  # the node has connected again since
        elif report.event in ("lost", "leaving"):
            del self.agents[node]
        if node not in self.running:
            return
        self.running.discard(node)  # its workers ended, it is lost, or it is back without its workers
        if report.failure is not None:
            self._fail(report.failure)
        elif report.event == "leaving" and not report.done:
            self._fail(Failure(Kind.PREEMPTION, f"node {node} was told to end", node, time.time(), Evidence.REQUESTED))
        elif report.event in ("lost", "ready"):
            self._fail(Failure(Kind.HARDWARE, f"node {node} was lost", node, time.time(), Evidence.MENTION))
        if not self.running:
            self._conclude()

    def _fail(self, failure: Failure) -> None:
        if not self.failures:
            log.warning("attempt %d: %s: all nodes stop", self.attempt, failure)
            for node in self.running & self.agents.keys():
                self._send(node, Order("stop", self.attempt, dump=failure.kind is Kind.HANG))
        self.failures.append(failure)

    def _conclude(self) -> None:
        self.waiting_since = time.monotonic()
        if not self.failures:
            self._finish(ExitCode.DONE)
        else:
            failure = root_cause(self.failures)
            decision = self.decide(self.attempt, failure)
            log.warning("attempt %d ended: %s; %s", self.attempt, failure, decision.why)
            if decision.code is not None:
                self._finish(decision.code)
            self.not_before = time.monotonic() + decision.after_s
        self.between_attempts.set()

    def _start_next(self) -> None:
        now = time.monotonic()
        if len(self.agents) == self.nodes and now >= self.not_before:
            self.attempt = self.next_attempt()
            self.running, self.failures = set(self.agents), []
            self.between_attempts.clear()
            order = Order("start", self.attempt, free_port())
            for node in self.agents:
                self._send(node, order)
        elif len(self.agents) < self.nodes and now - self.waiting_since > self.node_timeout_s:
            missing = sorted(set(range(self.nodes)) - self.agents.keys())
            log.error("nodes %s are missing for %.0f s; the job must be requeued", missing, self.node_timeout_s)
            self._finish(ExitCode.REQUEUE)

    def _finish(self, code: ExitCode) -> None:
        self.code = code
        self.drops.report(now=True)
        for node in sorted(self.agents, reverse=True):  # node 0 last: this process ends with it
            self._send(node, Order("exit", code=code))
        self.between_attempts.set()

    def _send(self, node: int, order: Order) -> None:
        self.agents[node].send(**order.fields())


class Agent:
    """A supervisor's side of the coordination.

    Args:
        node: The supervisor's node.
        address: The coordinator's host and port.
        run: The run's folder.
        key: The run's key.
        timeout_s: How long to wait for the coordinator (s).
    """

    def __init__(self, node: int, address: tuple[str, int], run: str, key: bytes, timeout_s: float) -> None:
        self.node = node
        self.address = address
        self.run = run
        self.key = key
        self.timeout_s = timeout_s
        self.orders: queue.Queue[Order | None] = queue.Queue()
        self.link: Link | None = None

    def connect(self) -> None:
        """Connect, or connect again when the coordinator has been away, and report that the node is ready. Raises
        `ConnectionError` when no coordinator answers in time, or none that holds the run's key.
        """
        deadline = time.monotonic() + self.timeout_s
        while True:
            try:
                link = self._link()
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    host, port = self.address
                    raise ConnectionError(f"no supervisor of node 0 at {host}:{port}: {error}") from error
                time.sleep(0.2)
        self.link, self.orders = link, queue.Queue()
        threading.Thread(target=self._listen, args=(link, self.orders), daemon=True).start()
        self._send(Report(self.node, "ready"))

    def report_end(self, done: bool, failure: Failure | None, leaving: bool) -> None:
        """Report that this node's workers have ended: with success, by `failure`, or because they were ordered to
        stop; and whether the node is `leaving` the job, because its scheduler has told it to end.
        """
        self._send(Report(self.node, "leaving" if leaving else "ended", done, failure))

    def next_order(self, timeout_s: float) -> Order | None:
        """Return the next order, or None when none arrives within `timeout_s` seconds. Raises `ConnectionResetError`
        when the coordinator is gone.
        """
        try:
            order = self.orders.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if order is None:
            self.orders.put(None)  # the next caller must learn of it, too
            raise ConnectionResetError("the supervisor of node 0 is gone")
        return order

    def close(self) -> None:
        """Leave the job and close the connection."""
        if self.link is not None:
            self._send(Report(self.node, "leaving"))
            self.link.close()

    def _link(self) -> Link:
        connection = socket.create_connection(self.address, timeout=CONNECT_S)
        try:
            return Link(connection, self.key, self.run, "agent", _log_drop)
        except OSError:
            connection.close()
            raise

    def _send(self, report: Report) -> None:
        assert self.link is not None
        self.link.send(**report.fields())

    def _listen(self, link: Link, orders: queue.Queue[Order | None]) -> None:
        link.listen(lambda fields: orders.put(parse_order(fields)))
        orders.put(None)


def _log_drop(reason: str) -> None:
    log.warning("dropped a message that is not the coordinator's: %s", reason)
