"""A vLLM server as the engine needs it: waited for, started, and started again."""

from __future__ import annotations

import atexit
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from framework.generation.engine import EngineError
from framework.generation.vllm_client import LateServerError, LostServerError, VLLMClient
from framework.generation.vllm_worker.key_guard import KEY
from framework.training.rl.engine.vllm_process import LOG, VLLMProcess, server_key


@dataclass
class VLLMServer:
    """The server at a client's URL. Ranks of several nodes wait for it; those of its node also start it."""

    client: VLLMClient
    """Asks it."""
    folder: Path
    """The model that it serves."""
    process: VLLMProcess | None
    """Starts it; None for a server that somebody else runs."""
    patience_s: float
    """Longest wait for a server that starts or comes back, in seconds."""
    _seen: float = field(default_factory=time.monotonic)
    """When it was healthy, or was started, by `time.monotonic`."""

    def ensure(self) -> None:
        """Waits until the server is healthy. Raises `LateServerError` when it is not in time, and `EngineError` when it
        serves another model.
        """
        if not self.is_healthy():
            self._wait()
        if self.process is not None and (other := self.client.model_name()) != str(self.folder):
            raise EngineError(f"engine {self.client.url}: serves {other}, not {self.folder}; give another port")

    def is_healthy(self) -> bool:
        """Whether it answers that it is."""
        try:
            self.client.health()
        except LostServerError:
            return False
        self._seen = time.monotonic()
        return True

    def revive(self) -> bool:
        """Returns whether the server is healthy. One that has ended, or is late by now, is replaced and not waited
        for.
        """
        if self.is_healthy():
            return True
        if self._has_died() or time.monotonic() - self._seen > self.patience_s:
            self.replace()
        return False

    def replace(self) -> None:
        """Ends the server, which may hang, and starts another, which is not waited for. Does nothing to a server that
        somebody else runs.
        """
        if self.process is not None:
            self.process.kill(self.folder)
            self._start()

    def _wait(self) -> None:
        """Waits until the server is healthy. One that has ended, or ends meanwhile, is started again, once per rank."""
        started = False
        while True:
            started |= self._start()
            try:
                self.client.wait(self.patience_s, self._has_died)
                return
            except LostServerError as error:
                if self._has_died() and not started:
                    continue
                remedy = f"start one with --model {self.folder}" if self.process is None else f"see {self.folder / LOG}"
                raise LateServerError(
                    f"{error}; no vLLM server became ready within {self.patience_s:g} s; {remedy}; for encoders its "
                    "environment needs the plug-in in plugins/vllm_plugin"
                ) from error

    def _start(self) -> bool:
        """Starts a server, and returns True; False where one runs, or starts, or somebody else has to start it."""
        if self.process is None or not self.process.start(self.folder, self.client.url):
            return False
        self._seen = time.monotonic()
        atexit.register(self.process.stop)
        return True

    def _has_died(self) -> bool:
        """Whether no server that a rank of this node started is alive."""
        return self.process is not None and self.process.ended(self.folder)


def server_of(url: str, folder: Path, process: VLLMProcess | None, timeout_s: float, patience_s: float) -> VLLMServer:
    """Returns the server at `url`. One that `process` does not start is sent the key in the variable `VLLM_API_KEY`."""
    process = process if process is not None and process.python is not None else None
    key = os.environ.get(KEY) if process is None else server_key(folder)
    return VLLMServer(VLLMClient(url, timeout_s, key), folder, process, patience_s)
