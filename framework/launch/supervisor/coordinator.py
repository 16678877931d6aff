"""What the nodes' supervisors decide together: one attempt after another, begun and ended by all at once.

The council sits in the supervisor of node 0, which the others reach by TCP. When one node's workers fail, or a node is
lost, all stop theirs; when all are back, it orders the next attempt, or the end. What is said is one JSON object a
line; see `Said` for what members say, `Order` for what they are told.
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

from framework.launch.supervisor.failure import MENTION, Failure, Kind, cause
from framework.launch.supervisor.restart import DONE, REQUEUE, STOP, Verdict

log = logging.getLogger(__name__)

BEAT_S = 2.0
"""How often each side says that it is there (s)."""
SILENCE_S = 20.0
"""Silence after which the other side counts as lost (s)."""


@dataclass(frozen=True, slots=True)
class Order:
    """Start `attempt`, whose ranks meet at `port`; stop it (`dump`: with the stacks of all workers); or exit with
    `code`.
    """

    word: Literal["start", "stop", "exit"]
    attempt: int = 0
    port: int = 0
    dump: bool = False
    code: int = 0


@dataclass(frozen=True, slots=True)
class Said:
    """What node `node` says: that it is ready; or how its workers ended: `done`, for a reason of its own (`failure`),
    or neither, as it was ordered to stop.
    """

    node: int
    word: Literal["ready", "ended", "lost"]
    done: bool = False
    failure: Failure | None = None


class Link:
    """A connection over which each side sends objects, and says every `BEAT_S` seconds that it is there."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(SILENCE_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = connection
        self._sending = threading.Lock()
        self._closed = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def send(self, **fields: Any) -> None:
        """Send an object; a side that is gone is noticed where it is listened to."""
        with suppress(OSError), self._sending:
            self._connection.sendall(json.dumps(fields).encode() + b"\n")

    def listen(self, hear: Callable[[dict[str, Any]], None]) -> None:
        """Call `hear` with each object, until the other side is gone or silent."""
        with suppress(OSError, ValueError), self._connection.makefile("rb") as lines:
            for line in lines:
                if line != b"\n":
                    hear(json.loads(line))
        self.close()

    def close(self) -> None:
        """Say no more."""
        self._closed.set()
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _beat(self) -> None:
        while not self._closed.wait(BEAT_S):
            with suppress(OSError), self._sending:
                self._connection.sendall(b"\n")


class Council:
    """Decides for `nodes` nodes. `judge` says what follows a failed attempt, `next_attempt` numbers one; nodes that are
    away for `patience_s` seconds are given up, and the scheduler is asked to requeue. Members of another `run` are
    turned away. Raises `OSError` where the port is taken.
    """

    def __init__(
        self,
        nodes: int,
        address: tuple[str, int],
        run: str,
        next_attempt: Callable[[], int],
        judge: Callable[[int, Failure], Verdict],
        patience_s: float,
    ) -> None:
        self.nodes = nodes
        self.run = run
        self.next_attempt = next_attempt
        self.judge = judge
        self.patience_s = patience_s
        self.attempt = 0
        self.members: dict[int, Link] = {}
        self.running: set[int] = set()
        self.done: set[int] = set()
        self.failures: list[Failure] = []
        self.not_before = 0.0
        self.gathering = time.monotonic()
        self.over = False
        self.said: queue.Queue[tuple[Link, Said]] = queue.Queue()
        self.server = socket.create_server(address, family=socket.AF_INET, backlog=nodes)
        self.address: tuple[str, int] = self.server.getsockname()
        threading.Thread(target=self._accept, daemon=True).start()
        threading.Thread(target=self._sit, daemon=True).start()

    def _accept(self) -> None:
        while True:
            connection, _ = self.server.accept()
            threading.Thread(target=self._hear, args=(Link(connection),), daemon=True).start()

    def _hear(self, link: Link) -> None:
        known: list[int] = []

        def hear(fields: dict[str, Any]) -> None:
            if fields.pop("run", None) != self.run:
                raise ValueError("a member of another run")
            if (failure := fields.pop("failure", None)) is not None:
                failure = Failure(**{**failure, "kind": Kind(failure["kind"])})
            said = Said(failure=failure, **fields)
            known[:] = [said.node]
            self.said.put((link, said))

        link.listen(hear)
        for node in known:
            self.said.put((link, Said(node, "lost")))

    def _sit(self) -> None:
        try:
            while not self.over:
                with suppress(queue.Empty):
                    link, said = self.said.get(timeout=0.1)
                    self._take(link, said)
                if not self.running and not self.over:
                    self._order_next()
        except Exception:
            log.exception("the council cannot go on")
            self._dissolve(STOP)

    def _take(self, link: Link, said: Said) -> None:
        node = said.node
        if said.word == "lost":
            if self.members.get(node) is not link:
                return  # it has come back over another connection
            del self.members[node]
        elif said.word == "ready":
            self.members[node] = link
        if node not in self.running:
            return
        self.running.discard(node)  # it ended, is gone, or has come back without what it ran
        if said.done:
            self.done.add(node)
        elif said.word != "ended":
            self._fail(Failure(Kind.HARDWARE, f"node {node} was lost", node, time.time(), MENTION))
        elif said.failure is not None:
            self._fail(said.failure)
        if not self.running:
            self._conclude()

    def _fail(self, failure: Failure) -> None:
        if not self.failures:
            log.warning("attempt %d: %s: all nodes stop", self.attempt, failure)
            for node in self.running & self.members.keys():
                self._tell(node, Order("stop", self.attempt, dump=failure.kind is Kind.HANG))
        self.failures.append(failure)

    def _conclude(self) -> None:
        self.gathering = time.monotonic()
        if not self.failures:
            self._dissolve(DONE)
            return
        failure = cause(self.failures)
        verdict = self.judge(self.attempt, failure)
        log.warning("attempt %d failed: %s; %s", self.attempt, failure, verdict.why)
        if verdict.code is not None:
            self._dissolve(verdict.code)
        self.not_before = time.monotonic() + verdict.after_s

    def _order_next(self) -> None:
        now = time.monotonic()
        if len(self.members) == self.nodes and now >= self.not_before:
            self.attempt = self.next_attempt()
            self.running, self.done, self.failures = set(self.members), set(), []
            order = Order("start", self.attempt, _free_port())
            for node in self.members:
                self._tell(node, order)
        elif len(self.members) < self.nodes and now - self.gathering > self.patience_s:
            away = sorted(set(range(self.nodes)) - self.members.keys())
            log.error("nodes %s did not come within %.0f s; the job is to be requeued", away, self.patience_s)
            self._dissolve(REQUEUE)

    def _dissolve(self, code: int) -> None:
        self.over = True
        for node in sorted(self.members, reverse=True):  # node 0 last: this process ends with it
            self._tell(node, Order("exit", code=code))

    def _tell(self, node: int, order: Order) -> None:
        self.members[node].send(**asdict(order))


class Member:
    """A node's seat in the council at `address`. It takes its seat again when the council has been away.

    Raises `ConnectionError` when there is none for `patience_s` seconds.
    """

    def __init__(self, node: int, address: tuple[str, int], run: str, patience_s: float) -> None:
        self.node = node
        self.address = address
        self.run = run
        self.patience_s = patience_s
        self.orders: queue.Queue[Order | None] = queue.Queue()
        self.link: Link | None = None

    def sit(self) -> None:
        """Take the seat, ready for an order."""
        end = time.monotonic() + self.patience_s
        while True:
            try:
                link = Link(socket.create_connection(self.address, timeout=5.0))
                break
            except OSError as error:
                if time.monotonic() > end:
                    host, port = self.address
                    raise ConnectionError(f"no supervisor of node 0 at {host}:{port}: {error}") from error
                time.sleep(0.2)
        self.link, self.orders = link, queue.Queue()
        threading.Thread(target=self._listen, args=(link, self.orders), daemon=True).start()
        self._say(Said(self.node, "ready"))

    def ended(self, done: bool, failure: Failure | None) -> None:
        """This node's workers have ended: well, by `failure`, or because they were ordered to stop."""
        self._say(Said(self.node, "ended", done, failure))

    def order(self, within_s: float) -> Order | None:
        """The next order; None when none has come within so many seconds. Raises `ConnectionResetError` when the
        council is gone.
        """
        try:
            order = self.orders.get(timeout=within_s)
        except queue.Empty:
            return None
        if order is None:
            self.orders.put(None)  # whoever asks next must learn of it, too
            raise ConnectionResetError("the supervisor of node 0 is gone")
        return order

    def leave(self) -> None:
        """Give up the seat."""
        if self.link is not None:
            self.link.close()

    def _say(self, said: Said) -> None:
        assert self.link is not None
        self.link.send(run=self.run, **asdict(said))

    def _listen(self, link: Link, orders: queue.Queue[Order | None]) -> None:
        link.listen(lambda fields: orders.put(Order(**fields)))
        orders.put(None)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port
