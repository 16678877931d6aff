"""Starts a vLLM server on this node, in an environment of its own, and stops it with the trainer."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from framework.generation import vllm_worker
from framework.generation.engine import EngineError
from framework.generation.vllm_worker.key_guard import KEY
from framework.recipe.component import component
from framework.recipe.credentials import is_secret
from framework.recipe.ranges import Finite
from framework.run.key_file import shared_key
from framework.run.lock import try_lock
from framework.run.parent_death import end_with_parent

REQUIRED_OPTIONS = (
    "--runner=generate",
    "--enable-scale-out",  # tokens in, tokens out
    "--trust-remote-code",  # of the encoders, which the trainer has written
    "--no-mm-device-do-normalize",  # our processor has normalized the pixels
    "--logprobs-mode",
    "processed_logprobs",  # of the distribution that is sampled from
    "--worker-extension-cls",
    "weight_stream.WeightStream",  # weights from a process group
    "--middleware=key_guard.KeyGuard",  # only whoever has the key is answered
)
"""Options that the client relies on, before those of the recipe."""
EXTENSION = Path(vllm_worker.__file__).parent
"""Must be on the server's PYTHONPATH."""
KEY_FILE = "server.key"
"""The server's key, for the ranks of all nodes; its owner's alone."""
OWN_OPTIONS = ("api-key", "host", "port", "middleware", "worker-extension-cls")
"""Options that no recipe gives: they would undo the lock, or show a key on the command line."""
STOP_S = 30.0
"""Longest wait for a server that was told to stop."""
PID = "server.pid"
LOG = "server.log"
LOCK = "server.lock"
"""Locked while a server lives: several vLLM servers could bind one port, and would share its requests."""


@component
@dataclass
class VLLMProcess:
    """A vLLM server as a subprocess."""

    python: str | None
    """Python of an environment with vLLM; None starts no server."""
    options: Mapping[str, str | Finite | bool] = field(default_factory=dict)
    """Options of the server's command line, by name without dashes; true gives the flag alone."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of the server, in addition to this process's."""
    _process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        """Raises `ValueError` for an option that this class itself gives."""
        if own := [name for name in self.options if name.replace("_", "-") in OWN_OPTIONS]:
            raise ValueError(
                f"sampler.process.options.{own[0]}: the server's own lock and address set it; leave it out"
            )

    def start(self, folder: Path, url: str) -> bool:
        """Starts a server for the model in `folder` at `url`, and returns True; False where a server of this node runs,
        or starts, for that folder. Its output goes to a file in the folder. It ends with this process. It answers
        those alone who send `server_key`.

        Raises `EngineError` when python cannot be run.
        """
        assert self.python is not None
        address = urlsplit(url)
        command = [self.python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
        command += ["--host", address.hostname or "127.0.0.1", "--port", str(address.port or 8000), *REQUIRED_OPTIONS]
        command += [f"--{name}" if value is True else f"--{name}={value}" for name, value in self.options.items()]
        inherited = {name: value for name, value in os.environ.items() if not is_secret(name)}  # its log is unmasked
        environment = {**inherited, **self.environment, "VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1"}
        environment[KEY] = server_key(folder)
        paths = [str(EXTENSION), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        with (folder / LOCK).open("ab") as lock, (folder / LOG).open("ab") as log:
            if not try_lock(lock):
                return False
            _kill_leftover(folder)
            try:
                self._process = subprocess.Popen(
                    command,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    pass_fds=[lock.fileno()],  # the server holds the lock while it lives
                    start_new_session=True,  # this process passes a keyboard interrupt on
                    # A server that is killed leaves its engine and workers behind, one that is told to end does not.
                    preexec_fn=functools.partial(end_with_parent, os.getpid(), signal.SIGTERM),
                )
            except OSError as error:
                raise EngineError(
                    f"sampler.process.python: {self.python}: {error.strerror}; set VLLM_PYTHON to the python of an "
                    "environment that has vLLM"
                ) from error
        (folder / PID).write_text(str(self._process.pid))
        return True

    def ended(self, folder: Path) -> bool:
        """Whether no server of this node serves `folder`, whichever rank started it."""
        if self._process is not None:
            self._process.poll()
        with (folder / LOCK).open("ab") as lock:
            return try_lock(lock)

    def stop(self) -> None:
        """Stops the server and its engine process. One that hangs is killed."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            _kill_session(self._process.pid)

    def kill(self, folder: Path) -> None:
        """Kills the server of this node for `folder`, whichever rank started it: one that hangs takes no SIGTERM."""
        _kill_leftover(folder)
        while not self.ended(folder):
            time.sleep(0.05)


def server_key(folder: Path) -> str:
    """Returns the key of the servers for the model in `folder`; the first who asks creates it, and the folder, for its
    owner alone.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return shared_key(folder / KEY_FILE).hex()


def _kill_leftover(folder: Path) -> None:
    """Kills the engine process of a dead server, which would keep the memory of its devices."""
    try:
        _kill_session(int((folder / PID).read_text()))
    except (FileNotFoundError, ValueError):
        return


def _kill_session(leader: int) -> None:
    """Kills the vLLM processes in the session of process `leader`, whose id may by now belong to another process."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(entry.name)) == leader and b"vllm" in (entry / "cmdline").read_bytes().lower():
                os.kill(int(entry.name), signal.SIGKILL)
        except (ProcessLookupError, FileNotFoundError, PermissionError):
            continue
