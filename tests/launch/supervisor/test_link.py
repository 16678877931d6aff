"""The lines that two supervisors exchange, and the key by which they know each other."""

from __future__ import annotations

import itertools
import socket
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.launch.supervisor import link as link_module
from framework.launch.supervisor.link import (
    MAX_LINE,
    ForeignPeerError,
    Lines,
    Link,
    OverlongLineError,
    Session,
    run_key,
)
from framework.run.key_file import KeyFileError
from framework.run.layout import COORDINATOR_KEY_FILE

KEY, RUN = b"k" * 32, "/runs/a"
NONCES = (b"c" * 32, b"a" * 32)


def connected() -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        return server.accept()[0], theirs


def sessions(key: bytes = KEY, run: str = RUN, nonces: tuple[bytes, bytes] = NONCES) -> tuple[Session, Session]:
    """The coordinator's and the agent's end of one connection."""
    return Session(key, run, "coordinator", nonces), Session(key, run, "agent", nonces)


def test_the_first_node_creates_the_key_for_its_owner_alone(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as nodes:
        keys = set(nodes.map(lambda _: run_key(tmp_path), range(8)))
    assert len(keys) == 1
    assert stat.S_IMODE((tmp_path / COORDINATOR_KEY_FILE).stat().st_mode) == 0o600
    assert run_key(tmp_path / "other") not in keys


@pytest.mark.attack("coordinator", "a key file that others can read or write", "refused")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_key_that_others_can_read_or_replace_is_refused(tmp_path: Path, mode: int) -> None:
    run_key(tmp_path)
    (tmp_path / COORDINATOR_KEY_FILE).chmod(mode)
    with pytest.raises(KeyFileError, match=f"coordinator.key: mode {mode:04o} .* remove the file"):
        run_key(tmp_path)


@pytest.mark.attack("coordinator", "a key file that holds no key", "refused")
@pytest.mark.parametrize("text", ["", "abc", "0" * 62, "z" * 64, "\0" * 64, "é" * 32])
def test_what_is_no_key_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / COORDINATOR_KEY_FILE
    file.write_text(text)
    file.chmod(0o600)
    with pytest.raises(KeyFileError, match="not a key"):
        run_key(tmp_path)


@pytest.mark.attack("coordinator", "lines sent a second time", "opened once")
@given(st.lists(st.binary(max_size=50), max_size=5))
def test_what_one_side_seals_the_other_opens_once_and_in_order(texts: list[bytes]) -> None:
    coordinator, agent = sessions()
    lines = [agent.seal(text) for text in texts]
    assert [coordinator.open(line) for line in lines] == texts
    assert [coordinator.open(line) for line in lines] == [None] * len(lines)


@pytest.mark.attack("coordinator", "a line of another key, run, nonce or direction", "not opened")
@pytest.mark.parametrize(
    "other",
    [
        sessions(key=b"x" * 32)[1],
        sessions(run="/runs/b")[1],
        sessions(nonces=(b"x" * 32, NONCES[1]))[1],
        sessions(nonces=(NONCES[0], b"x" * 32))[1],
        sessions()[0],
    ],
    ids=["key", "run", "coordinator's nonce", "agent's nonce", "direction"],
)
def test_a_line_of_another_session_is_not_opened(other: Session) -> None:
    assert sessions()[0].open(other.seal(b"{}")) is None


@pytest.mark.attack("coordinator", "a line with one byte changed", "not opened")
@given(position=st.integers(0, 200), value=st.integers(0, 255))
def test_a_changed_line_is_not_opened(position: int, value: int) -> None:
    coordinator, agent = sessions()
    line = bytearray(agent.seal(b'{"node": 1}'))
    position %= len(line)
    changed = bytes([*line[:position], value, *line[position + 1 :]])
    assert coordinator.open(changed) == (None if changed != line else b'{"node": 1}')


@pytest.mark.attack("coordinator", "a line that is left out", "later ones are not opened")
def test_a_line_left_out_ends_the_order() -> None:
    coordinator, agent = sessions()
    agent.seal(b"1")
    assert coordinator.open(agent.seal(b"2")) is None


@pytest.mark.attack("coordinator", "lines of any length in pieces of any size", "whole, or skipped as overlong")
@given(st.lists(st.integers(0, 24), max_size=4), st.lists(st.integers(1, 20), min_size=1, max_size=8))
def test_lines_arrive_whole_however_they_are_cut_and_overlong_ones_are_skipped(
    sizes: list[int], pieces: list[int]
) -> None:
    ours, theirs = connected()
    with mock.patch.object(link_module, "MAX_LINE", 16):
        data = b"".join(b"x" * size + b"\n" for size in sizes)
        for size in itertools.cycle(pieces):
            if not data:
                break
            theirs.sendall(data[:size])
            data = data[size:]
        theirs.close()
        lines, read = Lines(ours), []
        for _ in sizes:
            try:
                read.append(len(lines.read(time.monotonic() + 10)))
            except OverlongLineError:
                read.append(-1)
        assert read == [size if size <= 16 else -1 for size in sizes]
        with pytest.raises(ConnectionResetError):
            lines.read(time.monotonic() + 10)
    ours.close()


@pytest.mark.attack("coordinator", "a byte now and then", "ended by the deadline")
def test_a_deadline_holds_however_slowly_the_other_side_sends() -> None:
    ours, theirs = connected()
    stop = threading.Event()

    def trickle() -> None:
        while not stop.wait(0.02):
            theirs.sendall(b"x")

    sender = threading.Thread(target=trickle)
    sender.start()
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        Lines(ours).read(began + 0.3)
    assert time.monotonic() - began < 1.0
    stop.set()
    sender.join()


def connect(key: bytes, run: str, side: str, theirs: socket.socket) -> Link:
    return Link(theirs, key, run, side, lambda reason: None)  # type: ignore[arg-type]


@pytest.mark.attack("coordinator", "a handshake under another key or run", "refused by both sides")
@pytest.mark.parametrize(("key", "run"), [(b"x" * 32, RUN), (KEY, "/runs/b")])
def test_neither_side_links_to_one_without_the_key_of_the_run(key: bytes, run: str) -> None:
    ours, theirs = connected()
    with ThreadPoolExecutor(1) as other:
        stranger = other.submit(connect, key, run, "agent", theirs)
        with pytest.raises(ForeignPeerError) as refused:
            connect(KEY, RUN, "coordinator", ours)
        with pytest.raises(ForeignPeerError):
            stranger.result()
    assert refused.value.reason == "foreign"


@pytest.mark.attack("coordinator", "foreign, malformed and overlong lines within a session", "dropped and counted")
def test_objects_arrive_and_what_does_not_belong_between_them_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "KEEPALIVE_S", 0.05)
    ours, theirs = connected()
    drops: list[str] = []
    received: list[dict[str, object]] = []
    with ThreadPoolExecutor(1) as other:
        linking = other.submit(connect, KEY, RUN, "agent", theirs)
        link = Link(ours, KEY, RUN, "coordinator", drops.append)
        agent = linking.result()

    def receive(fields: dict[str, object]) -> None:
        if fields.get("n") == 2:
            raise ValueError("not that one")
        received.append(fields)

    listening = threading.Thread(target=link.listen, args=(receive,))
    listening.start()
    agent.send(n=1)
    theirs.sendall(b"0" * 64 + b' {"n": 7}\n')
    agent.send(n=2)
    theirs.sendall(b"y" * 3 * MAX_LINE + b"\n")
    agent.send(n=3)
    deadline = time.monotonic() + 10
    while len(received) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    agent.close()
    listening.join(10)
    assert received == [{"n": 1}, {"n": 3}]
    assert drops == ["foreign", "malformed", "overlong"]
