"""Two tiers: committed on the node's own disk, then on the shared one; restored from whichever is newest and good."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Literal

import pytest

from framework.checkpoint.checkpoint_writer import CheckpointWriter
from framework.checkpoint.manifest import CheckpointError, problems
from framework.checkpoint.policy import CheckpointPolicy
from framework.checkpoint.retention import KeepLast
from framework.checkpoint.save import SaveRequest
from framework.checkpoint.save_modes import Asynchronous, SaveMode, Synchronous
from framework.checkpoint.store import CheckpointStore
from framework.run.layout import COMMIT
from tests.checkpoint.toy import PausingWriter, make, same, snapshot, train, wait_for


def writer(kind: Literal["synchronous", "thread", "process"]) -> SaveMode:
    return Synchronous() if kind == "synchronous" else Asynchronous(kind)


@pytest.mark.parametrize("kind", ["synchronous", "thread", pytest.param("process", marks=pytest.mark.slow)])
def test_both_tiers_hold_the_newest(tmp_path: Path, kind: Literal["synchronous", "thread", "process"]) -> None:
    near, shared = tmp_path / "near", tmp_path / "shared"
    model, optimizer = make(0)
    with CheckpointStore(shared, KeepLast(2), writer(kind), near) as store:
        store.start()
        for step in (1, 2, 3):
            train(model, optimizer)
            store.save(step, 1, model, optimizer, {}, {})
        assert store.finish()
        assert [path.name[:13] for path in sorted(near.glob("step-*"))] == ["step-00000003"]
        assert [path.name[:13] for path in sorted(shared.glob("step-*"))] == ["step-00000002", "step-00000003"]
        assert not any(problems(path) for path in [*near.glob("step-*"), *shared.glob("step-*")])
        newest = store.newest()
        assert newest is not None
        assert newest.folder.parent == near
        again, again_optimizer = make(1)
        store.load(newest, again, again_optimizer)
        assert same(snapshot(again, again_optimizer), snapshot(model, optimizer))


@pytest.mark.guarantee("With two tiers, a run restores from whichever is newest and verifies")
@pytest.mark.parametrize(
    ("damaged", "tier", "step"), [("near", "shared", 2), ("shared", "near", 2), ("both", "shared", 1)]
)
def test_restores_from_whichever_verifies_and_is_newest(tmp_path: Path, damaged: str, tier: str, step: int) -> None:
    model, optimizer = make(0)
    store = CheckpointStore(tmp_path / "shared", KeepLast(2), None, tmp_path / "near")
    for at in (1, 2):
        store.save(at, 1, model, optimizer, {}, {})
    for name in ("near", "shared"):
        if damaged in (name, "both"):
            shard = next((tmp_path / name / "step-00000002.attempt-1" / "tensors").glob("*.distcp"))
            shard.write_bytes(shard.read_bytes()[:-1])
    newest = store.newest()
    assert newest is not None
    assert (newest.folder.parent.name, newest.step) == (tier, step)


def test_a_crash_during_the_copy_leaves_the_near_one(tmp_path: Path) -> None:
    class Slow(PausingWriter):
        def copy(self, request: SaveRequest) -> None:
            self._pause("copy", request)
            super().copy(request)

    model, optimizer = make(0)
    slow = functools.partial(Slow, str(tmp_path), "copy", 2)
    store = CheckpointStore(tmp_path / "shared", KeepLast(), Asynchronous("thread", writer=slow), tmp_path / "near")
    for step in (1, 2):
        store.save(step, 1, model, optimizer, {}, {})
    wait_for(tmp_path / "reached")
    assert not (tmp_path / "shared" / "step-00000002.attempt-1" / COMMIT).exists()
    newest = CheckpointStore(tmp_path / "shared", KeepLast(), None, tmp_path / "near").newest()
    assert newest is not None
    assert (newest.folder.parent.name, newest.step) == ("near", 2)
    alone = CheckpointStore(tmp_path / "shared", KeepLast()).newest()  # the node is gone
    assert alone is not None
    assert alone.step == 1
    (tmp_path / "go").touch()
    assert store.finish()
    store.close()


def test_a_copy_that_reads_otherwise_is_not_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Flipping(CheckpointWriter):
        def copy(self, request: SaveRequest) -> None:
            monkeypatch.setattr("shutil.copyfileobj", lambda read, written, _: written.write(bytes(len(read.read()))))
            super().copy(request)

    model, optimizer = make(0)
    with CheckpointStore(
        tmp_path / "shared", KeepLast(), Asynchronous("thread", writer=Flipping), tmp_path / "near"
    ) as store:
        store.save(1, 1, model, optimizer, {}, {})
        with pytest.raises(CheckpointError, match=r"shared.*reads back differently from .*near"):
            store.finish()
        newest = store.newest()
        assert newest is not None
        assert newest.folder.parent.name == "near"


def test_runs_of_one_name_do_not_meet_on_the_nodes_disk(tmp_path: Path) -> None:
    policy = CheckpointPolicy(every=1, local_folder=str(tmp_path / "disk"))
    model, optimizer = make(0)
    for place in ("a", "b"):
        policy.store(tmp_path / place / "demo" / "checkpoints").save(1, 1, model, optimizer, {}, {})
    assert len(list((tmp_path / "disk").rglob("COMMIT"))) == 2
