"""Saving in the background: the state at the step is saved, and every failure is reported."""

from __future__ import annotations

import functools
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
import torch

from framework.checkpoint import daemon, staging
from framework.checkpoint.manifest import CheckpointError, problems
from framework.checkpoint.retention import KeepLast
from framework.checkpoint.save_modes import Asynchronous, Synchronous
from framework.checkpoint.store import CheckpointStore
from framework.run.layout import COMMIT
from tests.checkpoint.forked_daemon import FORKING
from tests.checkpoint.toy import Counting, FullDisk, PausingWriter, alive, make, same, snapshot, train, wait_for

Mode = Literal["process", "thread"]
MODES: tuple[Mode, ...] = ("process", "thread")


@pytest.fixture(autouse=True)
def _daemons_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "subprocess", FORKING)


@pytest.fixture(params=[pytest.param("process", marks=pytest.mark.slow), "thread"])
def mode(request: pytest.FixtureRequest) -> Mode:
    return request.param


@pytest.mark.parametrize("kind", ["synchronous", *MODES])
@pytest.mark.slow
def test_saves_what_was_there_at_the_step_though_it_changes_right_after(
    tmp_path: Path, kind: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = staging._copy
    monkeypatch.setattr(staging, "_copy", lambda *tensors: (time.sleep(0.3), copy(*tensors)))
    model, optimizer = make(0)
    train(model, optimizer)
    chosen = Synchronous() if kind == "synchronous" else Asynchronous(kind)
    with CheckpointStore(tmp_path, KeepLast(9), chosen) as store:
        saved = {}
        for step in (1, 2, 3):
            saved[step] = snapshot(model, optimizer)
            store.save(step, 1, model, optimizer, {"stage": f"at {step}"}, {})
            train(model, optimizer)  # its forward pass changes a buffer, its optimizer waits for the copy
            store.poll()
        assert store.finish()
        for checkpoint in store.committed():
            again, again_optimizer = make(1)
            store.load(checkpoint, again, again_optimizer)
            assert same(snapshot(again, again_optimizer), saved[checkpoint.step])
            assert checkpoint.state()["stage"] == f"at {checkpoint.step}"
        assert [checkpoint.step for checkpoint in store.committed()] == [1, 2, 3]


def test_the_state_is_read_at_the_step(tmp_path: Path, mode: Mode) -> None:
    model, optimizer = make(0)
    with CheckpointStore(tmp_path, KeepLast(), Asynchronous(mode)) as store:
        cursor = {"samples": [1, 2]}
        store.save(1, 1, model, optimizer, {"cursor": cursor}, {"random": cursor})
        cursor["samples"].append(3)
        assert store.finish()
        (checkpoint,) = store.committed()
        assert checkpoint.state()["cursor"] == {"samples": [1, 2]}
        assert checkpoint.rank_state(0) == {"random": {"samples": [1, 2]}}


@pytest.mark.guarantee("At most one save is in flight, and a failed one surfaces at the next step")
def test_never_two_saves_in_flight(tmp_path: Path) -> None:
    model, optimizer = make(0)
    save_mode = Asynchronous("thread", writer=Counting)
    with CheckpointStore(tmp_path, KeepLast(9), save_mode) as store:
        for step in range(1, 6):
            store.save(step, 1, model, optimizer, {}, {})
        assert store.finish()
        assert [checkpoint.step for checkpoint in store.committed()] == [1, 2, 3, 4, 5]
    assert isinstance(save_mode._writer, Counting)
    assert (save_mode._writer.now, save_mode._writer.most) == (0, 1)


def test_a_model_that_grew_is_saved_whole(tmp_path: Path, mode: Mode) -> None:
    model, optimizer = make(0)
    with CheckpointStore(tmp_path, KeepLast(), Asynchronous(mode)) as store:
        store.save(1, 1, model, optimizer, {}, {})  # no optimizer state yet
        train(model, optimizer, 2)
        store.save(2, 1, model, optimizer, {}, {})
        before = snapshot(model, optimizer)
        assert store.finish()
        newest = store.newest()
        assert newest is not None
        again, again_optimizer = make(1)
        store.load(newest, again, again_optimizer)
        assert same(snapshot(again, again_optimizer), before)


def poll_until(store: CheckpointStore, limit: float) -> None:
    while time.monotonic() < limit:
        store.poll()
        time.sleep(0.01)


def fails_at_the_next_poll(store: CheckpointStore, step: int, message: str) -> None:
    """The failure of a save comes out of `poll`, once, within seconds; what was there before still verifies."""
    good = store.newest()
    assert good is not None
    model, optimizer = make(0)
    train(model, optimizer)
    store.save(step, 1, model, optimizer, {}, {})
    limit = time.monotonic() + 20
    with pytest.raises(CheckpointError, match=message) as caught:
        poll_until(store, limit)
    assert f"the save of step {step} failed" in str(caught.value)
    assert "Traceback" not in str(caught.value)
    store.poll()
    assert store.finish()
    assert store.newest() == good
    assert problems(good.folder) == []


def test_an_unwritable_folder_is_told(tmp_path: Path, mode: Mode) -> None:
    model, optimizer = make(0)
    with CheckpointStore(tmp_path, KeepLast(), Asynchronous(mode)) as store:
        store.save(1, 1, model, optimizer, {}, {})
        assert store.finish()
        (tmp_path / "step-00000002.attempt-1").write_text("a file, where a folder should be")
        fails_at_the_next_poll(store, 2, r"step-00000002.*could not be written")


@pytest.mark.guarantee("A kill at any moment loses nothing committed")
def test_a_full_disk_is_told(tmp_path: Path, mode: Mode) -> None:
    model, optimizer = make(0)
    with CheckpointStore(tmp_path, KeepLast(), Asynchronous(mode, writer=FullDisk)) as store:
        store.save(1, 1, model, optimizer, {}, {})
        assert store.finish()
        fails_at_the_next_poll(store, 2, "No space left on device")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_disk_that_fills_up_is_told(small_disk: Path, mode: Mode) -> None:
    model, optimizer = make(0)
    with CheckpointStore(small_disk, KeepLast(9), Asynchronous(mode)) as store:
        store.save(1, 1, model, optimizer, {}, {})
        assert store.finish()
        with (small_disk / "filler").open("wb", buffering=0) as filler:
            try:
                while filler.write(bytes(4096)) == 4096:
                    pass
            except OSError:
                pass
        fails_at_the_next_poll(store, 2, "could not be written")
        (small_disk / "filler").unlink()
        store.save(3, 1, model, optimizer, {}, {})
        assert store.finish()
        assert [checkpoint.step for checkpoint in store.committed()] == [1, 3]


def kill_daemon(save_mode: Asynchronous) -> int:
    assert save_mode._daemon is not None
    pid = save_mode._daemon.pid
    os.kill(pid, signal.SIGKILL)
    return pid


@pytest.mark.slow
def test_a_daemon_killed_between_saves_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, optimizer = make(0)
    save_mode = Asynchronous("process")
    with CheckpointStore(tmp_path, KeepLast(9), save_mode) as store:
        store.save(1, 1, model, optimizer, {}, {})
        assert store.finish()
        dead = kill_daemon(save_mode)
        limit = time.monotonic() + 20
        while save_mode._daemon is not None and save_mode._daemon.pid == dead and time.monotonic() < limit:
            store.poll()
        assert f"checkpoint daemon {dead} died" in caplog.text
        store.save(2, 1, model, optimizer, {}, {})
        assert store.finish()
        assert [checkpoint.step for checkpoint in store.committed()] == [1, 2]


@pytest.mark.guarantee("A kill at any moment loses nothing committed")
@pytest.mark.slow
def test_a_daemon_killed_during_a_save_loses_that_one_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, optimizer = make(0)
    train(model, optimizer)
    save_mode = Asynchronous("process", writer=functools.partial(PausingWriter, str(tmp_path), "upload", 2))
    with CheckpointStore(tmp_path / "checkpoints", KeepLast(9), save_mode) as store:
        for step in (1, 2):
            store.save(step, 1, model, optimizer, {}, {})
        wait_for(tmp_path / "reached")
        dead = kill_daemon(save_mode)
        with caplog.at_level(logging.WARNING):
            assert not store.finish()
        assert f"the save of step 2 is lost: checkpoint daemon {dead} died (code -9)" in caplog.text
        store.poll()
        store.save(3, 1, model, optimizer, {}, {})
        assert store.finish()
        assert [checkpoint.step for checkpoint in store.committed()] == [1, 3]
        assert not (tmp_path / "checkpoints" / "step-00000002.attempt-1").exists()  # the remains are cleared away


@pytest.mark.slow
def test_a_daemon_that_hangs_is_killed_in_time_and_too_many_losses_are_an_error(tmp_path: Path) -> None:
    model, optimizer = make(0)
    hang = functools.partial(PausingWriter, str(tmp_path), "upload", 1)
    save_mode = Asynchronous("process", timeout_s=4.0, max_lost_saves=1, writer=hang)
    with CheckpointStore(tmp_path / "checkpoints", KeepLast(9), save_mode) as store:
        began = time.monotonic()
        store.save(1, 1, model, optimizer, {}, {})
        assert not store.finish()
        store.save(1, 1, model, optimizer, {}, {})
        with pytest.raises(CheckpointError, match=r"2 saves in a row were lost.*did not answer in time"):
            store.finish()
        assert time.monotonic() - began < 15
        assert store.newest() is None


def test_a_thread_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("framework.checkpoint.save_modes.GRACE_S", 0.2)
    model, optimizer = make(0)
    save_mode = Asynchronous(
        "thread", timeout_s=0.3, writer=functools.partial(PausingWriter, str(tmp_path), "upload", 1)
    )
    store = CheckpointStore(tmp_path / "checkpoints", KeepLast(), save_mode)
    store.save(1, 1, model, optimizer, {}, {})
    store.poll()
    with pytest.raises(CheckpointError, match=r"step 1: not saved after [01] s"):
        store.finish()
    (tmp_path / "go").touch()
    store.close()


@pytest.mark.slow
def test_a_daemon_ends_with_its_trainer(tmp_path: Path) -> None:
    program = f"""
import time
from pathlib import Path
from framework.checkpoint.store import CheckpointStore
from framework.checkpoint.save_modes import Asynchronous
from tests.checkpoint.toy import make
store = CheckpointStore(Path({str(tmp_path)!r}), None, Asynchronous("process"))
model, optimizer = make(0)
store.save(1, 1, model, optimizer, {{}}, {{}})
store.finish()
print(store.save_mode._daemon.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        pid = int(trainer.stdout.readline())
        assert alive(pid)
        for number in (signal.SIGTERM, signal.SIGUSR1):  # schedulers send them to all of a job; the last save needs us
            os.kill(pid, number)
        time.sleep(0.2)
        assert alive(pid)
        trainer.kill()
    limit = time.monotonic() + 10
    while alive(pid):
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_staging_needs_one_descriptor_and_shares_memory() -> None:
    tensors = {f"weight {index}": torch.full((index % 5, 3), float(index)) for index in range(3000)}
    tensors |= {"scalar": torch.tensor(7.0), "half": torch.ones(3, dtype=torch.bfloat16)}
    before = len(list(Path("/proc/self/fd").iterdir()))
    host_copy = staging.HostCopy(tensors, {"scalar"})
    tensors["scalar"].zero_()  # was to be copied at once
    arena = host_copy.run(None)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2
    other = staging.Arena(arena.slots, os.dup(arena.descriptor))
    assert all(torch.equal(other.tensors[name], value) for name, value in tensors.items() if name != "scalar")
    assert other.tensors["scalar"] == 7
    assert all(value.untyped_storage().nbytes() == value.nbytes for value in other.tensors.values())
    other.close()
    arena.close()


def test_too_little_memory_is_an_error_and_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise OSError("Cannot allocate memory")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(CheckpointError, match="no host memory for 64 bytes"):
        staging.Arena.like({"weight": torch.ones(3)})


def test_the_optimizer_waits_for_the_copy_and_for_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go, copy = threading.Event(), staging._copy
    monkeypatch.setattr(staging, "_copy", lambda *tensors: (go.wait(30), copy(*tensors)))
    model, optimizer = make(0)
    train(model, optimizer)
    pausing = functools.partial(PausingWriter, str(tmp_path), "upload", 1)
    with CheckpointStore(tmp_path / "checkpoints", KeepLast(), Asynchronous("thread", writer=pausing)) as store:
        store.save(1, 1, model, optimizer, {}, {})
        loss = model(torch.randn(5, 3)).square().mean()
        loss.backward()
        threading.Timer(0.3, go.set).start()
        began = time.monotonic()
        optimizer.step()
        assert time.monotonic() - began > 0.25
        wait_for(tmp_path / "reached")
        train(model, optimizer, 3)  # the save is in flight still
        assert not (tmp_path / "checkpoints" / "step-00000001.attempt-1" / COMMIT).exists()
        (tmp_path / "go").touch()
        assert store.finish()
    assert not optimizer._optimizer_step_pre_hooks
