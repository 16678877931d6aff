"""One writer a run folder: the second is refused, and the place of a dead one is taken."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from framework.run import writer_lock
from framework.run.writer_lock import RunInUseError, Writer, writing


def _leave(folder: Path, age_s: float = 0.0, **changes: Any) -> Path:
    """What a writer left in `folder`: this process, but for `changes`, whose last sign of life is `age_s` old."""
    file = folder / "writer.json"
    file.write_text(json.dumps(asdict(replace(Writer.here(), **changes))))
    os.utime(file, (time.time() - age_s,) * 2)
    return file


def _try(folder: Path) -> subprocess.CompletedProcess[str]:
    program = f"""
from pathlib import Path
from framework.run.writer_lock import RunInUseError, writing
try:
    with writing(Path({str(folder)!r})):
        print("writes")
except RunInUseError as error:
    print(error)
"""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)


@pytest.mark.fault("two writers in one folder")
def test_the_second_of_two_is_refused_and_told_of_the_first(tmp_path: Path) -> None:
    with writing(tmp_path / "run"):
        said = _try(tmp_path / "run").stdout
        assert said.startswith(f"{tmp_path / 'run'}: process {os.getpid()} on ")
        assert "give another run.name" in said
    assert _try(tmp_path / "run").stdout == "writes\n"
    assert not (tmp_path / "run" / "writer.json").exists()


def test_a_killed_writer_is_followed_at_once(tmp_path: Path) -> None:
    program = f"""
import sys, time
from pathlib import Path
from framework.run.writer_lock import writing
with writing(Path({str(tmp_path)!r})):
    print("writes", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "writes\n"
        first.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)  # it is dead, and its parent does not know yet
        start = time.monotonic()
        with writing(tmp_path):
            assert time.monotonic() - start < 5


def test_a_reused_process_id_is_no_writer(tmp_path: Path) -> None:
    _leave(tmp_path, started="1")
    with writing(tmp_path):
        pass


def test_a_writer_on_another_host_is_dead_after_a_while(tmp_path: Path) -> None:
    _leave(tmp_path, age_s=writer_lock.STALE_S + 1, host="node-7")
    with writing(tmp_path):
        pass


def test_a_silent_writer_on_another_host_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_lock, "STALE_S", 0.4)
    monkeypatch.setattr(writer_lock, "BEAT_S", 0.1)
    _leave(tmp_path, host="node-7")
    start = time.monotonic()
    with writing(tmp_path):
        assert time.monotonic() - start > 0.3


def test_a_writer_on_another_host_that_gives_signs_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_lock, "BEAT_S", 0.1)
    file, over = _leave(tmp_path, host="node-7"), threading.Event()

    def live() -> None:
        while not over.wait(0.2):
            os.utime(file)

    other = threading.Thread(target=live)
    other.start()
    try:
        with pytest.raises(RunInUseError, match=r"on node-7 .* sign of life was 0 s ago"), writing(tmp_path):
            pass
    finally:
        over.set()
        other.join()


def test_a_file_that_cannot_be_read_is_waited_for_like_another_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_lock, "STALE_S", 0.3)
    (tmp_path / "writer.json").write_text('{"host": ')
    with writing(tmp_path):
        pass


@pytest.mark.fault("two writers in one folder")
@pytest.mark.parametrize(
    "changes",
    [
        {"since": "a"},
        {"since": 1e30},
        {"since": math.nan},
        {"process": "self"},
        {"token": None},
        {"host": 5},
        {"boot": 1},
    ],
)
def test_a_writer_of_odd_fields_is_none(tmp_path: Path, changes: dict[str, Any]) -> None:
    file = tmp_path / "writer.json"
    file.write_text(json.dumps(asdict(Writer.here()) | changes))
    os.utime(file, (time.time() - 2 * writer_lock.STALE_S,) * 2)
    with writing(tmp_path):
        assert json.loads(file.read_text())["process"] == os.getpid()


def test_of_many_that_find_a_dead_writer_one_takes_its_place(tmp_path: Path) -> None:
    _leave(tmp_path, started="1")
    taken, refused, over = [], [], threading.Barrier(6)

    def take() -> None:
        try:
            with writing(tmp_path):
                taken.append(1)
                over.wait(10)
        except RunInUseError:
            refused.append(1)
            over.wait(10)

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(taken), len(refused)) == (1, 5)


def test_a_writer_whose_place_was_taken_is_terminated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_lock, "BEAT_S", 0.1)
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        with writing(tmp_path):
            _leave(tmp_path, host="node-7", token="another")
            end = time.monotonic() + 5
            while not received and time.monotonic() < end:
                time.sleep(0.05)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]
    assert (tmp_path / "writer.json").exists()  # the other's
