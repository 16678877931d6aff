"""One history for a run: orphans of dead attempts, checkpoints that do not load, models that changed."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from torch import nn, optim

from framework.checkpoint.history import Checkpoint
from framework.checkpoint.manifest import MANIFEST, CheckpointError, commit, entry_of, files_in, problems
from framework.checkpoint.retention import KeepLast
from framework.checkpoint.store import CheckpointStore
from framework.run.layout import COMMIT
from tests.checkpoint.toy import make, same, snapshot, train


def saved(folder: Path, attempt: int, *steps: int) -> CheckpointStore:
    """A store with checkpoints of `attempt` at `steps`."""
    store = CheckpointStore(folder, KeepLast(9))
    model, optimizer = make(0)
    for step in steps:
        train(model, optimizer)
        store.save(step, attempt, model, optimizer, {}, {})
    return store


def chosen(store: CheckpointStore, attempt: int) -> tuple[int, int] | None:
    checkpoint = store.resume(attempt)
    return None if checkpoint is None else (checkpoint.step, checkpoint.attempt)


def uncommit(folder: Path) -> str:
    marker = folder / COMMIT
    text = marker.read_text()
    marker.unlink()
    return text


def test_a_commit_that_comes_after_the_next_attempt_chose_stays_unused(tmp_path: Path) -> None:
    store = saved(tmp_path, 1, 5, 10)
    late = tmp_path / "step-00000010.attempt-1"
    text = uncommit(late)
    assert chosen(store, 2) == (5, 1)
    (late / COMMIT).write_text(text)  # the orphan
    assert problems(late) == []
    assert [checkpoint.step for checkpoint in store.committed()] == [5]
    assert chosen(store, 3) == (5, 1)  # attempt 2 died before it saved anything
    model, optimizer = make(0)
    store.save(7, 3, model, optimizer, {}, {})
    assert not late.exists()
    assert chosen(store, 4) == (7, 3)


def test_a_commit_that_comes_before_the_next_attempt_chooses_is_used(tmp_path: Path) -> None:
    store = saved(tmp_path, 1, 5, 10)
    assert chosen(store, 2) == (10, 1)


def test_an_orphan_of_an_attempt_that_had_saved_nothing(tmp_path: Path) -> None:
    store = saved(tmp_path, 1, 5)
    text = uncommit(tmp_path / "step-00000005.attempt-1")
    assert chosen(store, 2) is None
    (tmp_path / "step-00000005.attempt-1" / COMMIT).write_text(text)
    assert chosen(store, 3) is None  # attempt 2 started fresh, and so does its history


def test_two_attempts_at_one_step_do_not_meet(tmp_path: Path) -> None:
    store = saved(tmp_path, 1, 5, 10)
    uncommit(tmp_path / "step-00000010.attempt-1")
    assert chosen(store, 2) == (5, 1)
    model, optimizer = make(0)
    store.save(10, 2, model, optimizer, {}, {})
    assert chosen(store, 3) == (10, 2)


def poison(checkpoint: Checkpoint) -> None:
    """Make it verify and not load."""
    (checkpoint.folder / "tensors" / ".metadata").write_bytes(b"no pickle")
    for name in (COMMIT, MANIFEST):
        (checkpoint.folder / name).unlink()
    commit(checkpoint.folder, {name: entry_of(checkpoint.folder / name) for name in files_in(checkpoint.folder)})
    assert problems(checkpoint.folder) == []


def attempt_to_load(store: CheckpointStore, attempt: int) -> int:
    """Resume as an attempt does; returns the step."""
    checkpoint = store.resume(attempt)
    assert checkpoint is not None
    store.load(checkpoint, *make(1))
    return checkpoint.step


def test_a_checkpoint_that_does_not_load_is_passed_over_in_the_end(tmp_path: Path) -> None:
    store = saved(tmp_path, 1, 5, 10)
    poison(store.committed()[1])
    for attempt in (2, 3, 4):
        with pytest.raises(CheckpointError, match=r"step-00000010.*verifies, but does not load"):
            attempt_to_load(store, attempt)
    assert attempt_to_load(store, 5) == 5
    assert attempt_to_load(store, 6) == 5


def test_when_none_loads_one_error_says_so(tmp_path: Path) -> None:
    store = saved(tmp_path, 1, 5, 10)
    for checkpoint in store.committed():
        poison(checkpoint)
    for attempt in range(2, 8):
        with pytest.raises(CheckpointError, match="does not load"):
            attempt_to_load(store, attempt)
    with pytest.raises(CheckpointError, match=r"no checkpoint verifies(.|\n)*3 attempts failed while loading it"):
        store.resume(8)


def test_a_process_that_dies_while_loading_counts_as_a_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = saved(tmp_path, 1, 5, 10)
    for attempt in (2, 3, 4, 5):
        checkpoint = store.resume(attempt)
        assert checkpoint is not None
        assert checkpoint.step == (10 if attempt < 5 else 5)
        monkeypatch.setattr("framework.checkpoint.store.load_tensors", lambda *_: sys.exit("out of memory"))
        with pytest.raises(SystemExit):
            store.load(checkpoint, *make(1))


def test_choosing_alone_is_no_try(tmp_path: Path) -> None:
    store = saved(tmp_path, 1, 5, 10)
    assert [chosen(store, attempt) for attempt in range(2, 9)] == [(10, 1)] * 7


def test_an_attempt_that_was_overtaken_deletes_nothing(tmp_path: Path) -> None:
    store = saved(tmp_path, 1, 5, 10)
    (tmp_path / "step-00000010.attempt-1" / COMMIT).unlink()
    assert chosen(store, 2) == (5, 1)
    model, optimizer = make(0)
    zombie = CheckpointStore(tmp_path, KeepLast(1))
    zombie.save(12, 1, model, optimizer, {}, {})
    assert [checkpoint.step for checkpoint in store.committed()] == [5]
    store.save(7, 2, model, optimizer, {}, {})
    zombie.save(14, 1, model, optimizer, {}, {})
    assert chosen(store, 3) == (7, 2)


class Grown(nn.Module):
    """The toy model after an edit."""

    def __init__(self, hidden: int, *, extra: bool = False) -> None:
        super().__init__()
        self.inner = nn.Linear(3, hidden)
        self.extra = nn.Linear(2, 2) if extra else nn.Identity()


def test_a_model_that_changed_is_one_error_and_no_try(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, KeepLast(9))
    model = Grown(4)
    store.save(5, 1, model, optim.AdamW(model.parameters()), {}, {})
    for attempt, changed in enumerate((Grown(6), Grown(6, extra=True), Grown(4, extra=True), Grown(6)), start=2):
        checkpoint = store.resume(attempt)
        assert checkpoint is not None
        with pytest.raises(CheckpointError) as caught:
            store.load(checkpoint, changed, optim.AdamW(changed.parameters()))
        message = str(caught.value)
        assert "written by another model or optimizer than this recipe's" in message
        assert "give a new run.name" in message
        assert ("model/inner.weight: (4, 3) in the checkpoint, (6, 3) in the model" in message) == (
            changed.inner.out_features == 6
        )
        assert ("model/extra.weight: none in the checkpoint, (2, 2) in the model" in message) == (
            not isinstance(changed.extra, nn.Identity)
        )
        assert "Traceback" not in message
    assert chosen(store, 9) == (5, 1)  # a wrong recipe does not spend the checkpoint's tries


def test_what_the_model_lost_is_named_and_weights_alone_do_without(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, KeepLast(9))
    model = Grown(4, extra=True)
    store.save(5, 1, model, optim.AdamW(model.parameters()), {}, {})
    smaller, checkpoint = Grown(4), store.committed()[0]
    with pytest.raises(CheckpointError, match=r"model/extra.bias: \(2,\) in the checkpoint, none in the model"):
        store.load(checkpoint, smaller, optim.AdamW(smaller.parameters()))
    store.load_weights(checkpoint, smaller)
    assert (smaller.inner.weight == model.inner.weight).all()


def test_parameters_that_are_new_stay_as_they_are_where_the_checkpoint_has_none(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, KeepLast(9))
    before, after = Grown(4), Grown(4, extra=True)
    store.save(5, 1, before, optim.AdamW(before.parameters()), {}, {})
    store.save(6, 1, after, optim.AdamW(after.parameters()), {}, {})
    old, new = store.committed()
    grown = Grown(4, extra=True)
    own = grown.extra.weight.clone()
    names = ["extra.weight", "extra.bias"]
    with pytest.raises(CheckpointError, match=r"model/extra.weight: none in the checkpoint, \(2, 2\) in the model"):
        store.load_weights(old, grown)
    store.load_weights(old, grown, names)
    assert (grown.inner.weight == before.inner.weight).all()
    assert (grown.extra.weight == own).all()
    store.load_weights(new, grown, names)
    assert (grown.extra.weight == after.extra.weight).all()


def test_what_a_layer_had_next_to_its_weight_is_not_left_out(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, KeepLast(9))
    model, plain = Grown(4), Grown(4)
    model.inner.extra = nn.Linear(3, 4)
    store.save(5, 1, model, optim.AdamW(model.parameters()), {}, {})
    with pytest.raises(CheckpointError, match=r"model/inner.extra.weight: \(4, 3\) in the checkpoint, none in the"):
        store.load_weights(store.committed()[0], plain)


def test_another_optimizer_is_named(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, KeepLast(9))
    model = Grown(4, extra=True)
    store.save(5, 1, model, optim.AdamW(model.inner.parameters()), {}, {})
    with pytest.raises(CheckpointError, match=r"its optimizer does not train extra\.weight, extra\.bias"):
        store.load(store.committed()[0], model, optim.AdamW(model.parameters()))


def test_a_parameter_without_a_gradient_yet_has_no_state_after_loading_either(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, KeepLast(9))
    model, optimizer = make(0)
    frozen = next(model[3].parameters())
    frozen.requires_grad_(False)
    train(model, optimizer, 2)
    assert frozen not in optimizer.state
    store.save(5, 1, model, optimizer, {}, {})
    again, again_optimizer = make(1)
    store.load(store.committed()[0], again, again_optimizer)
    assert same(snapshot(again, again_optimizer), snapshot(model, optimizer))


@pytest.mark.parametrize("kind", ["SGD", "Adafactor", "Muon", "Adam"])
def test_other_optimizers(tmp_path: Path, kind: str) -> None:
    def build(model: nn.Module) -> optim.Optimizer:
        if kind == "SGD":
            return optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        if kind == "Muon":
            return optim.Muon([parameter for parameter in model.parameters() if parameter.ndim == 2])
        if kind == "Adafactor":
            return optim.Adafactor(model.parameters())
        return optim.Adam(model.parameters(), fused=True)

    store = CheckpointStore(tmp_path, KeepLast(9))
    model, again = make(0)[0], make(1)[0]
    optimizer, again_optimizer = build(model), build(again)
    train(model, optimizer, 2)
    store.save(5, 1, model, optimizer, {}, {})
    store.load(store.committed()[0], again, again_optimizer)
    before, after = optimizer.state_dict(), again_optimizer.state_dict()
    assert before["param_groups"] == after["param_groups"]
    assert before["state"].keys() == after["state"].keys()
    for number, state in before["state"].items():
        for key, value in state.items():
            assert (value == after["state"][number][key]).all(), (number, key)
            assert value.dtype == after["state"][number][key].dtype


def test_a_folder_that_was_copied_elsewhere_still_verifies(tmp_path: Path) -> None:
    saved(tmp_path / "one", 1, 5)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    store = CheckpointStore(tmp_path / "two", KeepLast())
    assert chosen(store, 2) == (5, 1)
