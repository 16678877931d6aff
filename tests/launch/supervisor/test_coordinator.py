"""Attacks on the coordinator of a two-node job while an attempt runs: none ends, seizes or disturbs it."""

from __future__ import annotations

import json
import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from framework.launch.exit_codes import ExitCode
from framework.launch.supervisor import coordinator as coordinator_module
from framework.launch.supervisor import link, listener
from framework.launch.supervisor.coordinator import Agent, Coordinator
from framework.launch.supervisor.failure import Evidence, Failure, Kind
from framework.launch.supervisor.link import Link, Session, run_key
from framework.launch.supervisor.messages import Order, Report, parse_order, parse_report
from framework.launch.supervisor.restart import Decision
from framework.run.drops import read_drop_counts

WAIT_S = 30.0


class Job:
    """A coordinator and the agents of two nodes, all of which run attempt 1."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.key = str(folder), run_key(folder)
        self.failures: list[Failure] = []
        self.coordinator = Coordinator(
            2, ("127.0.0.1", 0), self.folder, self.key, lambda: 1 + len(self.failures), self.decide, WAIT_S
        )
        self.address = self.coordinator.address
        self.agents = [Agent(node, self.address, self.folder, self.key, WAIT_S) for node in (0, 1)]
        for agent in self.agents:
            agent.connect()
        for agent in self.agents:
            assert self.order(agent).action == "start"

    def decide(self, attempt: int, failure: Failure) -> Decision:
        self.failures.append(failure)
        return Decision("again")

    def order(self, agent: Agent) -> Order:
        order = agent.next_order(WAIT_S)
        assert order is not None
        return order

    def ends_well(self) -> None:
        """Both nodes' workers succeed, and the job ends as done, with no order in between and no failure."""
        for agent in self.agents:
            agent.report_end(done=True, failure=None, leaving=False)
        assert [self.order(agent) for agent in self.agents] == [Order("exit", code=ExitCode.DONE)] * 2
        assert self.failures == []

    def wait_for_drops(self, reason: str, count: int = 1) -> None:
        """Until so many are counted in the run's folder."""
        limit = time.monotonic() + WAIT_S
        while read_drop_counts(Path(self.folder)).get(reason, 0) < count:
            assert time.monotonic() < limit, read_drop_counts(Path(self.folder))
            time.sleep(0.02)

    def stranger(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=WAIT_S)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    monkeypatch.setattr(listener, "REPORT_S", 0.0)
    monkeypatch.setattr(link, "HANDSHAKE_S", 1.0)
    job = Job(tmp_path)
    yield job
    for agent in job.agents:
        agent.close()


def say(*lines: bytes) -> Callable[[Job], None]:
    """A stranger that sends `lines`, and reads until it is turned away."""

    def attack(job: Job) -> None:
        with job.stranger() as stranger, suppress(ConnectionError):
            for line in lines:
                stranger.sendall(line + b"\n")
            while stranger.recv(4096):
                pass

    return attack


def plain(**fields: Any) -> bytes:
    """A message as the supervisors of earlier versions sent it."""
    return json.dumps({"node": 1, **fields}).encode()


def silent(job: Job) -> None:
    """Says nothing for longer than it may."""
    with job.stranger() as stranger:
        while stranger.recv(4096):
            pass


def slow_loris(job: Job) -> None:
    """Sends a byte now and then."""
    began = time.monotonic()
    with job.stranger() as stranger, suppress(ConnectionError):
        while time.monotonic() < began + 10:
            stranger.sendall(b"0")
            time.sleep(0.1)
    assert time.monotonic() < began + 10, "the connection was never ended"


def endless(job: Job) -> None:
    """A line without end."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with job.stranger() as stranger, suppress(ConnectionError):
        for _ in range(64):
            stranger.sendall(b"x" * 1_000_000)
        pytest.fail("64 MB were taken in")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16_000


def reflected(job: Job) -> None:
    """Sends back whatever the coordinator sends."""
    with job.stranger() as stranger, suppress(ConnectionError):
        while data := stranger.recv(4096):
            stranger.sendall(data)


def replayed(job: Job) -> None:
    """Records all that an agent sends, and sends it again over a connection of its own."""
    recorded = recorded_by_a_relay(job)
    with job.stranger() as stranger, suppress(ConnectionError):
        stranger.sendall(recorded)
        while stranger.recv(4096):
            pass


def recorded_by_a_relay(job: Job) -> bytes:
    """What an agent sends to join, seen by someone who relays its connection, and then cuts it before the report."""
    recorded = b""
    with socket.create_server(("127.0.0.1", 0)) as server:
        connecting = threading.Thread(target=try_link, args=(server.getsockname(), job))
        connecting.start()
        agent, _ = server.accept()
        with agent, job.stranger() as coordinator:
            coordinator.settimeout(0.2)
            agent.settimeout(0.2)
            for _ in range(10):
                for source, sink in ((coordinator, agent), (agent, coordinator)):
                    with suppress(TimeoutError):
                        data = source.recv(4096)
                        sink.sendall(data)
                        recorded += data if source is agent else b""
                if recorded.count(b"\n") >= 2:
                    break
        connecting.join()
    assert recorded.count(b"\n") >= 2
    return recorded


def try_link(address: tuple[str, int], job: Job) -> None:
    with suppress(OSError):
        Link(socket.create_connection(address), job.key, job.folder, "agent", lambda _: None).close()


def other_key(job: Job) -> None:
    """A supervisor of another run, or of this one with a guessed key."""
    for key, run in ((b"x" * 32, job.folder), (job.key, "/runs/other"), (b"", job.folder)):
        with pytest.raises(OSError):  # noqa: PT011 - turned away, however it notices
            Link(job.stranger(), key, run, "agent", lambda _: None)


def impostor(job: Job) -> None:
    """Connects without the key and says that both nodes are done."""
    session = Session(b"x" * 32, job.folder, "agent", (b"0" * 32, b"1" * 32))
    reports = [Report(node, event) for node in (0, 1) for event in ("ready", "ended")]
    lines = [session.seal(json.dumps(report.fields()).encode()) for report in reports]
    say((b"1" * 32).hex().encode(), session.seal(b"{}"), *lines)(job)


def closed_at_once(job: Job) -> None:
    for _ in range(50):
        job.stranger().close()


def reset_at_once(job: Job) -> None:
    for _ in range(50):
        stranger = job.stranger()
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close by RST
        stranger.close()


ATTACKS: dict[str, tuple[Callable[[Job], None], str]] = {
    "the reports of earlier versions": (say(plain(event="ready"), plain(event="ended", done=True)), "malformed"),
    "a node that is a list": (say(plain(node=[1], event="ready")), "malformed"),
    "HTTP": (say(b"GET / HTTP/1.1", b"Host: a", b""), "malformed"),
    "TLS": (say(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(200)), "malformed"),
    "zeros": (say(b"\0" * 1000), "malformed"),
    "no text": (say(os.urandom(64).replace(b"\n", b"") + b"\xff"), "malformed"),
    "a short nonce": (say(b"00" * 16), "malformed"),
    "empty lines": (say(*[b""] * 1000), "malformed"),
    "deep JSON": (say(b"[" * 60_000), "malformed"),
    "a nonce without a proof": (say(b"00" * 32, b"{}"), "foreign"),
    "a proof of zeros": (say(b"00" * 32, b"0" * 64 + b" {}"), "foreign"),
    "silence": (silent, "late"),
    "a nonce, then silence": (say(b"00" * 32), "late"),
    "a byte now and then": (slow_loris, "late"),
    "a line without end": (endless, "overlong"),
    "all that it hears": (reflected, "foreign"),
    "all that an agent said": (replayed, "foreign"),
    "a guessed key or run": (other_key, "foreign"),
    "reports under a guessed key": (impostor, "foreign"),
    "50 connections closed at once": (closed_at_once, "broken"),
    "50 connections reset at once": (reset_at_once, "broken"),
}
"""What is tried, and the reason under which it is counted."""


@pytest.mark.fault("a stranger at the coordinator")
@pytest.mark.attack(
    "coordinator",
    "foreign, forged, replayed, reflected, endless and malformed messages",
    "dropped and counted; the job ends well",
)
@pytest.mark.guarantee(
    "No stranger ends, seizes or disturbs a job: foreign, forged and malformed messages are dropped and counted"
)
@pytest.mark.parametrize("name", ATTACKS)
def test_no_stranger_disturbs_a_job(name: str, job: Job) -> None:
    attack, reason = ATTACKS[name]
    attack(job)
    job.wait_for_drops(reason)
    assert all(agent.next_order(0.05) is None for agent in job.agents)
    job.ends_well()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.attack("coordinator", "a crowd of open connections", "dropped; agents are served")
def test_a_crowd_neither_takes_the_job_s_descriptors_nor_keeps_an_agent_out(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "MAX_PENDING", 16)
    before = descriptors()
    crowd = [job.stranger() for _ in range(100)]
    job.wait_for_drops("crowded", 80)
    assert descriptors() < before + len(crowd) + 40
    again = Agent(1, job.address, job.folder, job.key, WAIT_S)
    again.connect()  # node 1's supervisor is back: its attempt is over
    assert job.order(job.agents[0]) == Order("stop", 1)
    for stranger in crowd:
        stranger.close()
    assert again.next_order(0.0) is None
    again.close()


@pytest.mark.attack("coordinator", "a flood of connections", "accepted at a limited rate")
@pytest.mark.guarantee(
    "No stranger ends, seizes or disturbs a job: foreign, forged and malformed messages are dropped and counted"
)
def test_connections_are_accepted_at_a_limited_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "MAX_RATE", 10)
    drops = listener.DropCounts(tmp_path)
    port = listener.Listener(("127.0.0.1", 0), b"k" * 32, "run", lambda _: None, drops)
    began = time.monotonic()
    for _ in range(35):
        socket.create_connection(port.address).close()
    while sum(drops.counts().values()) < 35:
        assert time.monotonic() < began + WAIT_S
        time.sleep(0.02)
    assert time.monotonic() - began > 2.0


MALFORMED: list[dict[str, Any]] = [
    {},
    {"node": [1]},
    {"node": True},
    {"node": 2},
    {"node": -1},
    {"node": 1.0},
    {"node": "1"},
    {"node": None},
    {"event": "lost"},
    {"event": "seize"},
    {"event": ["ended"]},
    {"done": 1},
    {"done": "true"},
    {"failure": 1},
    {"failure": {}},
    {"failure": {"kind": "alien", "detail": "", "node": 0, "time": 0.0, "evidence": 3}},
    {"failure": {"kind": "software", "detail": "x" * 3000, "node": 0, "time": 0.0, "evidence": 3}},
    {"failure": {"kind": "software", "detail": "", "node": 0, "time": float("nan"), "evidence": 3}},
    {"failure": {"kind": "software", "detail": "", "node": 0, "time": 10**400, "evidence": 3}},
    {"failure": {"kind": "software", "detail": "", "node": 0, "time": 0.0, "evidence": 99}},
    {"failure": {"kind": "software", "detail": "", "node": 9, "time": 0.0, "evidence": 3}},
]


@pytest.mark.attack("coordinator", "a malformed report", "refused")
@pytest.mark.parametrize("changes", MALFORMED, ids=str)
def test_a_malformed_report_of_a_node_is_dropped(changes: dict[str, Any]) -> None:
    fields = Report(1, "ended", done=True).fields() | changes if changes else {}
    with pytest.raises(ValueError, match=r": "):
        parse_report(fields, 2)


@pytest.mark.attack("coordinator", "JSON that is no message", "refused")
@pytest.mark.guarantee(
    "No stranger ends, seizes or disturbs a job: foreign, forged and malformed messages are dropped and counted"
)
@pytest.mark.parametrize("fields", [1, [], "a", None, {"action": "start"}], ids=str)
def test_what_is_no_message_is_dropped(fields: Any) -> None:
    for parse in (parse_order, lambda fields: parse_report(fields, 2)):
        with pytest.raises(ValueError, match=r": "):
            parse(fields)


def test_messages_are_read_as_they_were_written() -> None:
    failure = Failure(Kind.HANG, "silence", 1, 17.5, Evidence.CAUSE)
    for report in (Report(1, "ready"), Report(0, "ended", done=True), Report(1, "leaving", failure=failure)):
        assert parse_report(json.loads(json.dumps(report.fields())), 2) == report
    for order in (Order("start", 3, 4000), Order("stop", 3, dump=True), Order("exit", code=75)):
        assert parse_order(json.loads(json.dumps(order.fields()))) == order


@pytest.mark.attack(
    "coordinator", "malformed reports, and reports for another node, by an agent", "dropped; the job ends well"
)
def test_a_malformed_report_over_a_node_s_own_link_does_not_end_it(job: Job) -> None:
    assert job.agents[1].link is not None
    for changes in filter(None, MALFORMED):
        job.agents[1].link.send(**(Report(1, "ended", done=True).fields() | changes))
    job.agents[1].link.send(**Report(0, "ended", done=True).fields())  # it speaks for node 1 alone
    job.wait_for_drops("malformed", len(MALFORMED))
    job.ends_well()


def test_a_node_that_is_told_to_end_is_no_failure_of_hardware_and_gets_no_order(job: Job) -> None:
    told = Failure(Kind.PREEMPTION, "received SIGTERM", 1, time.time(), Evidence.REQUESTED)
    job.agents[1].report_end(done=False, failure=told, leaving=True)
    assert job.order(job.agents[0]) == Order("stop", 1)
    job.agents[0].report_end(done=False, failure=None, leaving=False)
    limit = time.monotonic() + WAIT_S
    while not job.failures:
        assert time.monotonic() < limit
        time.sleep(0.01)
    assert job.failures == [told]
    assert [agent.next_order(0.5) for agent in job.agents] == [None, None]
    again = Agent(1, job.address, job.folder, job.key, WAIT_S)
    again.connect()
    assert (job.order(again).action, job.order(job.agents[0]).attempt) == ("start", 2)
    again.close()


@pytest.mark.attack("coordinator", "orders by whoever holds the port", "not obeyed")
def test_an_agent_takes_no_order_from_whoever_has_the_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "HANDSHAKE_S", 0.2)
    monkeypatch.setattr(coordinator_module, "CONNECT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        agent = Agent(1, server.getsockname(), str(tmp_path), run_key(tmp_path), timeout_s=0.5)

        def squat() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    connection.sendall(b"00" * 32 + b"\n" + b'{"action": "exit"}\n')

        threading.Thread(target=squat, daemon=True).start()
        with pytest.raises(ConnectionError, match="no supervisor of node 0"):
            agent.connect()
