"""A server that is killed leaves nothing behind that keeps memory."""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch

from framework.generation.engine import EngineError
from framework.generation.vllm_client import VLLMClient
from framework.training.rl.engine.vllm_process import KEY_FILE, LOG, PID, VLLMProcess, server_key
from framework.training.rl.engine.vllm_server import server_of
from framework.training.rl.engine.weight_transfer import WeightFiles

SERVER = """#!{python}
import pathlib, subprocess, sys, time
engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "VLLM::EngineCore"])
with open("{told}", "a") as told:
    print(engine.pid, file=told, flush=True)
time.sleep(600)
"""


ENDING = """import signal
def end(*_):
    engine.kill()
    sys.exit()
signal.signal(signal.SIGTERM, end)
import pathlib"""


def _engines(told: Path, count: int) -> list[int]:
    while not told.exists() or told.read_text().count("\n") < count:
        time.sleep(0.05)
    return [int(line) for line in told.read_text().split()]


def _lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _until_dead(process: int) -> None:
    while _lives(process):
        time.sleep(0.05)


def test_the_engine_of_a_killed_server_is_ended_before_the_next_begins(tmp_path: Path) -> None:
    told, python = tmp_path / "told", tmp_path / "python"
    python.write_text(SERVER.format(python=sys.executable, told=told))
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    process, folder = VLLMProcess(str(python)), tmp_path / "engine"
    assert process.start(folder, "http://127.0.0.1:1")
    (first,) = _engines(told, 1)
    os.kill(int((folder / PID).read_text()), signal.SIGKILL)
    while not process.ended(folder):
        time.sleep(0.05)
    assert _lives(first), "it would have ended by itself"
    assert process.start(folder, "http://127.0.0.1:1")
    _until_dead(first)
    _, second = _engines(told, 2)
    process.stop()
    _until_dead(second)


def test_a_server_whose_trainer_is_killed_ends_with_its_engine(tmp_path: Path) -> None:
    """As vLLM does, the server ends its engine when it is told to end."""
    told, python, folder = tmp_path / "told", tmp_path / "python", tmp_path / "engine"
    python.write_text(SERVER.format(python=sys.executable, told=told).replace("import pathlib", ENDING, 1))
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    if not (trainer := os.fork()):
        try:
            VLLMProcess(str(python)).start(folder, "http://127.0.0.1:1")
            time.sleep(600)
        finally:
            os._exit(1)
    (engine,) = _engines(told, 1)
    while not (folder / PID).exists() or not (pid := (folder / PID).read_text()):
        time.sleep(0.05)
    server = int(pid)
    os.kill(trainer, signal.SIGKILL)
    os.waitpid(trainer, 0)
    for each in (server, engine):
        _until_dead(each)


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_server_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """It takes no SIGTERM. Any process with the folder can kill it, as another rank does."""
    monkeypatch.setattr("framework.training.rl.engine.vllm_process.STOP_S", 0.2)
    told, python, folder = tmp_path / "told", tmp_path / "python", tmp_path / "vllm-engine"
    python.write_text(SERVER.format(python=sys.executable, told=told))
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    process = VLLMProcess(str(python))
    assert process.start(folder, "http://127.0.0.1:1")
    (engine,), server = _engines(told, 1), int((folder / PID).read_text())
    os.kill(server, signal.SIGSTOP)
    if how == "killed":
        VLLMProcess(str(python)).kill(folder)
    else:
        process.stop()
    for each in (server, engine):
        _until_dead(each)
    assert process.ended(folder)


def test_a_server_that_stays_unhealthy_is_replaced(tmp_path: Path) -> None:
    told, python, folder = tmp_path / "told", tmp_path / "python", tmp_path / "engine"
    python.write_text(SERVER.format(python=sys.executable, told=told))
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    process = VLLMProcess(str(python))
    server = server_of("http://127.0.0.1:9", folder, process, timeout_s=1, patience_s=1)
    assert not server.revive(), "it starts"
    (first,) = _engines(told, 1)
    assert not server.revive()
    assert _lives(first), "it still has time"
    server.patience_s = 0.0
    assert not server.revive()
    _until_dead(first)
    _, second = _engines(told, 2)
    process.stop()
    _until_dead(second)


SHOWING = """#!{python}
import os, pathlib, sys, time
pathlib.Path("{shown}.part").write_text(os.environ["VLLM_API_KEY"] + "\\n" + " ".join(sys.argv + list(os.environ)))
os.rename("{shown}.part", "{shown}")
time.sleep(600)
"""


@pytest.mark.attack("endpoint", "reading the key from the process list, the log or the folder", "not shown; mode 0600")
def test_the_server_gets_a_key_that_its_command_line_does_not_show(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "somebody else's")
    monkeypatch.setenv("COMET_API_KEY", "q8Zr2LmX0vNc7TyB")
    shown, python = tmp_path / "shown", tmp_path / "python"
    python.write_text(SHOWING.format(python=sys.executable, shown=shown))
    python.chmod(0o755)
    process, folder = VLLMProcess(str(python), {"dtype": "float32"}), tmp_path / "engine"
    assert process.start(folder, "http://127.0.0.1:1")
    while not shown.exists():
        time.sleep(0.05)
    key, command = shown.read_text().split("\n")
    process.stop()
    assert key == server_key(folder)
    assert len(key) == 64
    assert key not in command
    assert "COMET_API_KEY" not in command, "the server, whose log is not masked, inherits no secret"
    assert "--host 127.0.0.1" in command
    assert "--middleware=key_guard.KeyGuard" in command
    assert stat.S_IMODE((folder / KEY_FILE).stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700, "the weights lie next to the key"
    assert key not in (folder / LOG).read_text()


@pytest.mark.attack("endpoint", "options that open the vLLM server", "refused")
@pytest.mark.parametrize("name", ["api-key", "api_key", "host", "port", "middleware", "worker-extension-cls"])
def test_a_recipe_cannot_undo_the_server_s_lock(name: str) -> None:
    with pytest.raises(ValueError, match=rf"sampler.process.options.{name}: .* leave it out"):
        VLLMProcess("python", {name: "0.0.0.0"})


@pytest.mark.attack("endpoint", "a redirect that asks for the key", "not followed")
def test_the_client_sends_the_key_to_its_server_alone(tmp_path: Path) -> None:
    received: list[tuple[str, str | None]] = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            received.append((self.path, self.headers.get("Authorization")))
            status = {"/health": 302, "/get_world_size": 401}.get(self.path, 200)
            self.send_response(status)
            self.send_header("Location", f"http://localhost:{server.server_port}/elsewhere")
            self.end_headers()

        def log_message(self, *arguments: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = VLLMClient(f"http://127.0.0.1:{server.server_port}", 10.0, "5ecre7")
        with pytest.raises(EngineError, match="rejects /health"):
            client.health()
        with pytest.raises(EngineError, match="export VLLM_API_KEY") as refused:
            client.workers()
        server.shutdown()
    assert received == [("/health", "Bearer 5ecre7"), ("/get_world_size", "Bearer 5ecre7")]
    assert "5ecre7" not in str(refused.value)


@pytest.mark.attack("endpoint", "a folder of weights that others can write", "refused")
def test_weights_are_written_where_nobody_else_can(tmp_path: Path) -> None:
    files = WeightFiles(tmp_path / "engine", torch.float32)
    files.write(0, [("a", torch.ones(2))])
    assert stat.S_IMODE((tmp_path / "engine").stat().st_mode) == 0o700
    for mode in (0o770, 0o707, 0o777):
        (tmp_path / "engine").chmod(mode)
        with pytest.raises(EngineError, match=rf"sampler.folder: .* mode {mode:04o}"):
            files.write(1, [("a", torch.ones(2))])
