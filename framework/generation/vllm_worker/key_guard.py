"""The lock of a vLLM server: it answers nobody who does not send its key, whatever the path.

vLLM's own `VLLM_API_KEY` guards /v1 and /inference alone: the paths that load weights, call methods of its workers or
put it to sleep are open to whoever reaches the port. The server takes `KeyGuard` as its `--middleware`.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Messages = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Messages]]
Send = Callable[[Messages], Awaitable[None]]
App = Callable[[Messages, Receive, Send], Awaitable[None]]

KEY = "VLLM_API_KEY"
"""The variable that holds the key: neither the command line nor a file that is copied shows it."""
OPEN_PATHS = frozenset({"/health"})
"""Paths that change nothing and tell nothing."""


class KeyGuard:
    """ASGI middleware that answers 401 without `Authorization: Bearer KEY`. Raises `KeyError` where no key is set.

    Args:
        app: The server's application.
    """

    def __init__(self, app: App) -> None:
        self.app = app
        self.expected = f"Bearer {os.environ[KEY]}".encode()

    async def __call__(self, scope: Messages, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with 401."""
        if scope["type"] == "lifespan" or scope.get("path") in OPEN_PATHS or self._has_key(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            headers = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": b'{"error": "Unauthorized"}'})
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _has_key(self, scope: Messages) -> bool:
        given = [value for name, value in scope.get("headers", ()) if name.lower() == b"authorization"]
        return len(given) == 1 and hmac.compare_digest(given[0], self.expected)
