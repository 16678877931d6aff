"""A vLLM server of this node, in an environment of its own: started, watched, and started again when it has died."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from framework.generation import vllm_worker
from framework.generation.engine import EngineError
from framework.run.lock import try_lock
from framework.run.parent_death import end_with_parent

NEEDED = (
    "--runner=generate",
    "--enable-scale-out",  # tokens in, tokens out
    "--enable-mm-embeds",  # what our encoders make of sensors
    "--no-mm-device-do-normalize",  # pixels come as our processor made them
    "--logprobs-mode",
    "processed_logprobs",  # of the distribution that is drawn from
    "--worker-extension-cls",
    "weight_stream.WeightStream",  # weights from a process group
)
"""What the client relies on, whatever else a server is told."""
EXTENSION = Path(vllm_worker.__file__).parent
"""Must be on the PYTHONPATH of a server."""
PID = "server.pid"
LOG = "server.log"
LOCK = "server.lock"
"""Locked while a server lives: several of vLLM's can have one port, and share what it is asked."""


@dataclass
class VLLMProcess:
    """The server that `python` (of an environment with vLLM; None: no server is started) starts with `options` of
    its command line (true: the flag alone) and `environment`.
    """

    python: str | None
    options: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    _process: subprocess.Popen[bytes] | None = None

    def start(self, folder: Path, url: str) -> bool:
        """Serve the model in `folder` at `url`, unless a server of this node does or is about to: says which. What it
        prints goes to a file there. It ends with this process.

        Raises `EngineError` when there is no such python.
        """
        assert self.python is not None
        place = urlsplit(url)
        command = [self.python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
        command += ["--host", place.hostname or "127.0.0.1", "--port", str(place.port or 8000), *NEEDED]
        command += [f"--{name}" if value is True else f"--{name}={value}" for name, value in self.options.items()]
        surroundings = {**os.environ, **self.environment, "VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1"}
        found = [str(EXTENSION), surroundings.get("PYTHONPATH", "")]
        surroundings["PYTHONPATH"] = os.pathsep.join(filter(None, found))
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LOCK).open("ab") as lock, (folder / LOG).open("ab") as log:
            if not try_lock(lock):
                return False
            _end_what_is_left(folder)
            try:
                self._process = subprocess.Popen(
                    command,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=surroundings,
                    pass_fds=[lock.fileno()],  # it holds the lock for as long as it lives
                    start_new_session=True,  # an interrupt at the keyboard is this process's to pass on
                    preexec_fn=functools.partial(end_with_parent, os.getpid()),
                )
            except OSError as error:
                raise EngineError(
                    f"engine.process.python: {self.python}: {error.strerror}; set VLLM_PYTHON to the python of an "
                    "environment that has vLLM"
                ) from error
        (folder / PID).write_text(str(self._process.pid))
        return True

    def ended(self, folder: Path) -> bool:
        """Whether no server of this node serves `folder`, whichever rank's it was."""
        if self._process is not None:
            self._process.poll()
        with (folder / LOCK).open("ab") as lock:
            return try_lock(lock)

    def stop(self) -> None:
        """End the server, and its engine."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            _end_session(self._process.pid)


def _end_what_is_left(folder: Path) -> None:
    """End the engine of a server that is dead: it does not notice, and keeps the memory of its devices."""
    try:
        _end_session(int((folder / PID).read_text()))
    except (FileNotFoundError, ValueError):
        return


def _end_session(leader: int) -> None:
    """Kill what is vLLM's in the session that process `leader` began. Its number may be another's by now."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(entry.name)) == leader and b"vllm" in (entry / "cmdline").read_bytes().lower():
                os.kill(int(entry.name), signal.SIGKILL)
        except (ProcessLookupError, FileNotFoundError, PermissionError):
            continue
