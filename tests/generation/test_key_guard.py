"""A vLLM server's lock: what reaches the server, by path, method and header."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from framework.generation.vllm_worker.key_guard import KEY, KeyGuard

SECRET = "5ecre7"
GOOD = (b"authorization", f"Bearer {SECRET}".encode())


def status(path: str, *headers: tuple[bytes, bytes], kind: str = "http", method: str = "POST") -> int:
    """What a client is answered; 200 where the server itself answers."""
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {}

    scope = {"type": kind, "path": path, "method": method, "headers": list(headers)}
    asyncio.run(KeyGuard(app)(scope, receive, send))
    return int(sent[0].get("status", sent[0].get("code", 0)))


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, SECRET)


PATHS = [
    "/v1/models", "/v1/completions", "/inference/v1/generate", "/collective_rpc", "/pause", "/resume", "/sleep",
    "/wake_up", "/update_weight_version", "/weight_checker", "/reset_prefix_cache", "/get_world_size", "/weight_info",
    "/docs", "/openapi.json", "/metrics", "/", "", "//collective_rpc", "/health/../collective_rpc", "/health/",
]  # fmt: skip


@pytest.mark.attack("endpoint", "paths and methods of the vLLM server without its key", "401")
@pytest.mark.guarantee("A vLLM server that a run starts answers nobody without its key, on any path but /health")
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_no_path_answers_a_stranger(path: str, method: str) -> None:
    assert status(path, method=method) == 401
    assert status(path, GOOD, method=method) == 200


@pytest.mark.attack("endpoint", "headers that are not the key", "401")
@pytest.mark.guarantee("A vLLM server that a run starts answers nobody without its key, on any path but /health")
@pytest.mark.parametrize(
    "headers",
    [
        [(b"authorization", b"")],
        [(b"authorization", b"Bearer ")],
        [(b"authorization", b"Bearer wrong")],
        [(b"authorization", SECRET.encode())],
        [(b"authorization", f"bearer {SECRET}".encode())],
        [(b"authorization", f"Bearer {SECRET} ".encode())],
        [(b"authorization", f"Bearer {SECRET}\xe9".encode())],
        [(b"x-api-key", SECRET.encode())],
        [GOOD, (b"authorization", b"Bearer wrong")],
        [GOOD, GOOD],
    ],
)
def test_no_header_but_the_key_opens_it(headers: list[tuple[bytes, bytes]]) -> None:
    assert status("/collective_rpc", *headers) == 401


@pytest.mark.attack("endpoint", "a web socket without the key", "closed")
def test_health_is_open_and_a_socket_is_not() -> None:
    assert status("/health", method="GET") == 200
    assert status("/v1/realtime", kind="websocket") == 1008
    assert status("/v1/realtime", GOOD, kind="websocket") == 200
    assert status("", kind="lifespan") == 200


@pytest.mark.attack("endpoint", "a server without a key", "does not start")
def test_a_server_without_a_key_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY)
    with pytest.raises(KeyError, match=KEY):
        status("/health")
