"""The command line of `serve`, and clients on a real socket: slow ones, large ones, and those that go."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from framework.recipe.problem import RecipeError
from framework.serving.app import Limits, Server
from framework.serving.serve import parse
from framework.training.ask import Asker
from tests.serving.conftest import CannedAsker, serving

KEY = "open sesame"
HEAD = f"POST /v1/drive HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: %d\r\n\r\n"


def test_all_words_that_cannot_be_used_are_told() -> None:
    with pytest.raises(RecipeError) as refused:
        parse(["run=nowhere", "host=", "api_key_env=", "port=70000", "timeout_s=0", "hosts=x", "fast"], {})
    assert {problem.key for problem in refused.value.problems} == {
        "run", "host", "api_key_env", "port", "timeout_s", "hosts", "fast"
    }  # fmt: skip
    with pytest.raises(RecipeError, match="the environment has no MY_KEY"):
        parse(["run=nowhere", "api_key_env=MY_KEY"], {})


def test_a_server_listens_on_this_machine_alone_and_no_text_shows_its_key(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").touch()
    plain = parse([f"run={tmp_path}"], {"MY_KEY": KEY})
    assert (plain.host, plain.key) == ("127.0.0.1", None)
    keyed = parse([f"run={tmp_path}", "api_key_env=MY_KEY"], {"MY_KEY": KEY})
    assert keyed.key == KEY
    assert KEY not in repr(keyed)


@pytest.fixture
def served(asker: Asker) -> Iterator[tuple[Server, int]]:
    """A server of canned answers, and its port on loopback."""
    server = serving(CannedAsker(asker.model, asker.data), Limits(body_bytes=1000, timeout_s=0.3), KEY)
    listening = uvicorn.Server(uvicorn.Config(server.app, port=0, log_level="warning"))
    thread = threading.Thread(target=listening.run)
    thread.start()
    while not listening.started:
        time.sleep(0.005)
    yield server, listening.servers[0].sockets[0].getsockname()[1]
    listening.should_exit = True
    thread.join()
    server.worker.close()


@pytest.mark.slow
@pytest.mark.fault("a request that cannot be used")
def test_clients_that_are_slow_send_too_much_or_go_leave_the_server_well(
    served: tuple[Server, int], caplog: pytest.LogCaptureFixture
) -> None:
    server, port = served

    def status(sent: str) -> str:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(sent.encode())
            return client.recv(4096).decode().partition("\r\n")[0]

    assert status(HEAD % 100 + "{").startswith("HTTP/1.1 408")  # the rest never comes
    assert status(HEAD % 5000 + "0" * 5000).startswith("HTTP/1.1 413")
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall((HEAD % 100 + "{").encode())  # and the client goes
    counted = 'serving_requests_total{route="/v1/drive",status="%s"} %d.0'
    gone = counted % (499, 1), counted % (408, 2)  # the latter where the machine is too busy to see it go
    end = time.monotonic() + 10
    while not any(each in server.metrics.text().decode() for each in gone) and time.monotonic() < end:
        time.sleep(0.01)
    told = server.metrics.text().decode()
    assert any(each in told for each in gone)
    assert status("GET /health HTTP/1.1\r\nHost: x\r\n\r\n").startswith("HTTP/1.1 200")
    assert KEY not in told + caplog.text
