"""The coordination of the nodes' supervisors: all start an attempt together, and all end it together.

The coordinator runs in the supervisor of node 0; an agent in each supervisor connects to it by TCP. When one node's
workers fail, or a node is lost, all nodes stop theirs; when all are back, the coordinator orders the next attempt, or
the end. A message is one JSON object on a line: a `Report` from an agent, an `Order` to it.
"""

from __future__ import annotations

import json
import logging
import queue
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Literal

from framework.launch.exit_codes import ExitCode
from framework.launch.supervisor.failure import Evidence, Failure, Kind, root_cause
from framework.launch.supervisor.restart import Decision

log = logging.getLogger(__name__)

KEEPALIVE_S = 2.0
"""Interval at which each side sends an empty line (s)."""
LINK_TIMEOUT_S = 20.0
"""Silence after which the other side counts as lost (s)."""


@dataclass(frozen=True, slots=True)
class Order:
    """A message of the coordinator to an agent."""

    action: Literal["start", "stop", "exit"]
    """Start or stop an attempt, or end the supervisor."""
    attempt: int = 0
    """The attempt's number."""
    port: int = 0
    """To start: the port on node 0 where the ranks meet."""
    dump: bool = False
    """To stop: whether all workers write their stacks first."""
    code: int = 0
    """To exit: the supervisor's exit code."""


@dataclass(frozen=True, slots=True)
class Report:
    """A message of an agent to the coordinator."""

    node: int
    """The agent's node."""
    event: Literal["ready", "ended", "lost"]
    """The node is ready for an order, its workers have ended, or its connection is lost."""
    done: bool = False
    """Ended: whether all workers succeeded."""
    failure: Failure | None = None
    """Ended: the node's own failure; neither done nor failed means that it was ordered to stop."""


class Link:
    """A connection over which each side sends JSON objects, and every `KEEPALIVE_S` seconds an empty line.

    Args:
        connection: The connected socket.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(LINK_TIMEOUT_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = connection
        self._sending = threading.Lock()
        self._closed = threading.Event()
        threading.Thread(target=self._keep_alive, daemon=True).start()

    def send(self, **fields: Any) -> None:
        """Send an object. If the other side is gone, `listen` notices."""
        with suppress(OSError), self._sending:
            self._connection.sendall(json.dumps(fields).encode() + b"\n")

    def listen(self, receive: Callable[[dict[str, Any]], None]) -> None:
        """Call `receive` with each object until the other side is gone or silent."""
        with suppress(OSError, ValueError), self._connection.makefile("rb") as lines:
            for line in lines:
                if line != b"\n":
                    receive(json.loads(line))
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._closed.set()
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _keep_alive(self) -> None:
        while not self._closed.wait(KEEPALIVE_S):
            with suppress(OSError), self._sending:
                self._connection.sendall(b"\n")


class Coordinator:
    """Orders the attempts of all nodes. Constructing it opens the port, and raises `OSError` where that is taken.

    Args:
        nodes: Nodes of the job.
        address: Where to listen, host and port; port 0 picks a free one.
        run: The run's folder. Agents of another run are turned away.
        next_attempt: Returns the number of the attempt that starts now.
        decide: Returns what follows an attempt that failed.
        node_timeout_s: How long to wait for missing nodes (s) before the job is requeued.
    """

    def __init__(
        self,
        nodes: int,
        address: tuple[str, int],
        run: str,
        next_attempt: Callable[[], int],
        decide: Callable[[int, Failure], Decision],
        node_timeout_s: float,
    ) -> None:
        self.nodes = nodes
        self.run = run
        self.next_attempt = next_attempt
        self.decide = decide
        self.node_timeout_s = node_timeout_s
        self.attempt = 0
        self.agents: dict[int, Link] = {}
        self.running: set[int] = set()
        self.failures: list[Failure] = []
        self.not_before = 0.0
        self.waiting_since = time.monotonic()
        self.finished = False
        self.reports: queue.Queue[tuple[Link, Report]] = queue.Queue()
        self.server = socket.create_server(address, family=socket.AF_INET, backlog=nodes)
        self.address: tuple[str, int] = self.server.getsockname()
        threading.Thread(target=self._accept, daemon=True).start()
        threading.Thread(target=self._coordinate, daemon=True).start()

    def _accept(self) -> None:
        while True:
            connection, _ = self.server.accept()
            threading.Thread(target=self._listen, args=(Link(connection),), daemon=True).start()

    def _listen(self, link: Link) -> None:
        nodes: list[int] = []

        def receive(fields: dict[str, Any]) -> None:
            if fields.pop("run", None) != self.run:
                raise ValueError("an agent of another run")
            if (failure := fields.pop("failure", None)) is not None:
                failure = Failure(**{**failure, "kind": Kind(failure["kind"])})
            report = Report(failure=failure, **fields)
            nodes[:] = [report.node]
            self.reports.put((link, report))

        link.listen(receive)
        for node in nodes:
            self.reports.put((link, Report(node, "lost")))

    def _coordinate(self) -> None:
        try:
            while not self.finished:
                with suppress(queue.Empty):
                    link, report = self.reports.get(timeout=0.1)
                    self._handle(link, report)
                if not self.running and not self.finished:
                    self._start_next()
        except Exception:
            log.exception("the coordinator cannot continue")
            self._finish(ExitCode.STOP)

    def _handle(self, link: Link, report: Report) -> None:
        node = report.node
        if report.event == "lost":
            if self.agents.get(node) is not link:
                return  # it has reconnected
            del self.agents[node]
        elif report.event == "ready":
            self.agents[node] = link
        if node not in self.running:
            return
        self.running.discard(node)  # its workers ended, it is lost, or it is back without its workers
        if report.event != "ended":
            self._fail(Failure(Kind.HARDWARE, f"node {node} was lost", node, time.time(), Evidence.MENTION))
        elif report.failure is not None:
            self._fail(report.failure)
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
            return
        failure = root_cause(self.failures)
        decision = self.decide(self.attempt, failure)
        log.warning("attempt %d failed: %s; %s", self.attempt, failure, decision.why)
        if decision.code is not None:
            self._finish(decision.code)
        self.not_before = time.monotonic() + decision.after_s

    def _start_next(self) -> None:
        now = time.monotonic()
        if len(self.agents) == self.nodes and now >= self.not_before:
            self.attempt = self.next_attempt()
            self.running, self.failures = set(self.agents), []
            order = Order("start", self.attempt, _free_port())
            for node in self.agents:
                self._send(node, order)
        elif len(self.agents) < self.nodes and now - self.waiting_since > self.node_timeout_s:
            missing = sorted(set(range(self.nodes)) - self.agents.keys())
            log.error("nodes %s are missing for %.0f s; the job must be requeued", missing, self.node_timeout_s)
            self._finish(ExitCode.REQUEUE)

    def _finish(self, code: ExitCode) -> None:
        self.finished = True
        for node in sorted(self.agents, reverse=True):  # node 0 last: this process ends with it
            self._send(node, Order("exit", code=code))

    def _send(self, node: int, order: Order) -> None:
        self.agents[node].send(**asdict(order))


class Agent:
    """A supervisor's side of the coordination.

    Args:
        node: The supervisor's node.
        address: The coordinator's host and port.
        run: The run's folder.
        timeout_s: How long to wait for the coordinator (s).
    """

    def __init__(self, node: int, address: tuple[str, int], run: str, timeout_s: float) -> None:
        self.node = node
        self.address = address
        self.run = run
        self.timeout_s = timeout_s
        self.orders: queue.Queue[Order | None] = queue.Queue()
        self.link: Link | None = None

    def connect(self) -> None:
        """Connect, or connect again when the coordinator has been away, and report that the node is ready. Raises
        `ConnectionError` when no coordinator answers in time.
        """
        deadline = time.monotonic() + self.timeout_s
        while True:
            try:
                link = Link(socket.create_connection(self.address, timeout=5.0))
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    host, port = self.address
                    raise ConnectionError(f"no supervisor of node 0 at {host}:{port}: {error}") from error
                time.sleep(0.2)
        self.link, self.orders = link, queue.Queue()
        threading.Thread(target=self._listen, args=(link, self.orders), daemon=True).start()
        self._send(Report(self.node, "ready"))

    def report_end(self, done: bool, failure: Failure | None) -> None:
        """Report that this node's workers have ended: with success, by `failure`, or because they were ordered to
        stop.
        """
        self._send(Report(self.node, "ended", done, failure))

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
        """Close the connection."""
        if self.link is not None:
            self.link.close()

    def _send(self, report: Report) -> None:
        assert self.link is not None
        self.link.send(run=self.run, **asdict(report))

    def _listen(self, link: Link, orders: queue.Queue[Order | None]) -> None:
        link.listen(lambda fields: orders.put(Order(**fields)))
        orders.put(None)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port
