"""Which checkpoints stay, and that none goes before a newer one is known to be good."""

from __future__ import annotations

from pathlib import Path

import pytest

from framework.checkpoint.checkpoint_writer import CheckpointWriter
from framework.checkpoint.history import Checkpoint, Retention
from framework.checkpoint.manifest import CheckpointError
from framework.checkpoint.retention import KeepAny, KeepBest, KeepEvery, KeepForEvaluation, KeepLast
from framework.checkpoint.save import SaveRequest
from framework.checkpoint.save_modes import Asynchronous
from framework.checkpoint.store import CheckpointStore
from framework.run.evaluations import TRIES, Evaluation, Wanted
from framework.run.progress import history
from tests.checkpoint.toy import make

LOSSES = {10: 3.0, 15: 1.0, 20: float("nan"), 25: 2.0, 26: 1.0, 30: 4.0}


@pytest.fixture
def checkpoints(tmp_path: Path) -> list[Checkpoint]:
    """Six checkpoints, the last one without a metric."""
    found = [Checkpoint(step, 1, tmp_path / str(step)) for step in LOSSES]
    for checkpoint in found:
        checkpoint.__dict__["metrics"] = {} if checkpoint.step == 30 else {"loss": LOSSES[checkpoint.step]}
    return found


@pytest.mark.guarantee("The retention rules bound the number of checkpoints")
@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        (KeepLast(2), {26, 30}),
        (KeepLast(99), set(LOSSES)),
        (KeepEvery(10), {10, 20, 30}),
        (KeepBest("loss"), {26}),
        (KeepBest("loss", count=2), {15, 26}),
        (KeepBest("loss", mode="max", count=2), {10, 25}),
        (KeepBest("accuracy"), set()),
        (KeepAny({"last": KeepLast(1), "every": KeepEvery(10), "best": KeepBest("loss")}), {10, 20, 26, 30}),
    ],
)
def test_rules(checkpoints: list[Checkpoint], rule: Retention, kept: set[int]) -> None:
    assert {checkpoint.step for checkpoint in rule.keep(checkpoints)} == kept


@pytest.mark.parametrize("make_rule", [lambda: KeepLast(0), lambda: KeepEvery(0), lambda: KeepBest("loss", count=0)])
def test_rules_that_keep_nothing_are_refused(make_rule: type) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        make_rule()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_best_stays_on_disk(tmp_path: Path, asynchronous: bool) -> None:
    model, optimizer = make(0)
    rule = KeepAny({"last": KeepLast(1), "best": KeepBest("loss")})
    with CheckpointStore(tmp_path, rule, Asynchronous("thread") if asynchronous else None) as store:
        for step, loss in enumerate((3.0, 1.0, 2.0, 4.0), start=1):
            store.save(step, 1, model, optimizer, {"metrics": {"loss": loss}}, {})
        assert store.finish()
        assert [checkpoint.step for checkpoint in store.committed()] == [2, 4]


def test_nothing_is_deleted_when_the_newest_reads_otherwise(tmp_path: Path) -> None:
    class LyingDisk(CheckpointWriter):
        def superseded(self, request: SaveRequest) -> list[Path]:
            shard = next((request.folders()[0] / "tensors").glob("*.distcp"))
            if request.step == 2:
                shard.write_bytes(shard.read_bytes()[:-1])
            return super().superseded(request)

    model, optimizer = make(0)
    with CheckpointStore(tmp_path, KeepLast(1), Asynchronous("thread", writer=LyingDisk)) as store:
        store.save(1, 1, model, optimizer, {}, {})
        store.save(2, 1, model, optimizer, {}, {})
        with pytest.raises(CheckpointError, match=r"step-00000002.*reads back differently; nothing is deleted"):
            store.finish()
        newest = store.newest()
        assert newest is not None
        assert newest.step == 1


def test_the_remains_of_dead_attempts_are_cleared_away(tmp_path: Path) -> None:
    (tmp_path / "step-00000009.attempt-1" / "tensors").mkdir(parents=True)
    (tmp_path / "step-00000009.attempt-3" / "tensors").mkdir(parents=True)  # an attempt after this one: not ours
    model, optimizer = make(0)
    CheckpointStore(tmp_path, KeepLast()).save(1, 2, model, optimizer, {}, {})
    assert {path.name for path in tmp_path.glob("step-*")} == {"step-00000001.attempt-2", "step-00000009.attempt-3"}


def test_what_is_to_be_evaluated_stays_until_it_is_and_the_best_for_good(tmp_path: Path) -> None:
    model, optimizer = make(0)
    rule = KeepAny({"last": KeepLast(1), "evaluations": KeepForEvaluation()})
    Wanted(("held_out", "night"), "held_out", "drive/ade", "min").write(tmp_path)

    def evaluation(step: int, suite: str) -> Evaluation:
        (saved,) = (each for each in history(tmp_path) if each.step == step)
        return Evaluation(tmp_path, step, saved.hash, suite)

    def evaluated(step: int, ade: float) -> None:
        for suite in ("held_out", "night"):
            evaluation(step, suite).claim(1, "job")
            evaluation(step, suite).finish({"figures": {"drive/ade": ade}})

    with CheckpointStore(tmp_path / "checkpoints", rule) as store:

        def save(step: int) -> list[int]:
            store.save(step, 1, model, optimizer, {}, {})
            return [checkpoint.step for checkpoint in store.committed()]

        assert save(1) == [1]
        assert save(2) == [1, 2]
        evaluation(1, "night").claim(1, "job")
        evaluation(1, "night").finish({"figures": {}})
        assert save(3) == [1, 2, 3], "held_out of step 1 is still to come"
        evaluated(1, 2.0)
        evaluated(2, 3.0)
        assert save(4) == [1, 3, 4], "step 1 is the best so far, step 2 is done with"
        evaluated(3, 1.0)
        assert save(5) == [3, 4, 5]
        evaluation(4, "held_out").give_up(f"{TRIES} jobs failed")
        evaluation(4, "night").give_up(f"{TRIES} jobs failed")
        assert save(6) == [3, 5, 6]


def test_where_nobody_wants_evaluations_nothing_waits(tmp_path: Path) -> None:
    checkpoint = Checkpoint(1, 1, tmp_path / "checkpoints" / "step-00000001.attempt-1")
    assert KeepForEvaluation().keep([checkpoint]) == set()


def test_a_checkpoint_by_its_folder_is_verified(tmp_path: Path) -> None:
    model, optimizer = make(0)
    with CheckpointStore(tmp_path, KeepLast(2)) as store:
        for step in (1, 2):
            store.save(step, 1, model, optimizer, {}, {})
        older = store.committed()[0]
        assert store.verified(older.folder) == older
        (older.folder / "state.json").write_text("{}")
        with pytest.raises(CheckpointError, match=r"does not verify; give another checkpoint"):
            store.verified(older.folder)
        with pytest.raises(CheckpointError, match=r"no COMMIT"):
            store.verified(tmp_path / "step-00000009.attempt-1")
