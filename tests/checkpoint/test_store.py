"""Checkpoints are trusted byte by byte, and nothing less."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from framework.checkpoint.manifest import CheckpointError, problems
from framework.checkpoint.randomness import random_state, restore_random_state
from framework.checkpoint.retention import KeepLast
from framework.checkpoint.store import CheckpointStore
from framework.run.layout import COMMIT


def _model(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(
        [{"params": model[0].parameters(), "lr": 1e-2}, {"params": model[2].parameters(), "lr": 1e-3}]
    )
    return model, optimizer


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        loss = model(torch.randn(5, 3)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return losses


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    store = CheckpointStore(tmp_path / "checkpoints", KeepLast(2))
    model, optimizer = _model(0)
    for step in (1, 2, 3):
        _train(model, optimizer, 1)
        store.save(step, 1, model, optimizer, {"stage": "broad"}, {"random": random_state()})
    return store


@pytest.mark.guarantee("What is loaded is what was saved, else the newest checkpoint that verifies")
def test_resumes_bit_for_bit(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, KeepLast(2))
    model, optimizer = _model(0)
    _train(model, optimizer, 3)
    store.save(3, 1, model, optimizer, {"stage": "broad"}, {"random": random_state()})
    undisturbed = _train(model, optimizer, 5)

    again, again_optimizer = _model(1)
    checkpoint = store.newest()
    assert checkpoint is not None
    store.load(checkpoint, again, again_optimizer)
    rank_state = checkpoint.rank_state(0)
    assert rank_state is not None
    restore_random_state(rank_state["random"])
    assert _train(again, again_optimizer, 5) == undisturbed
    assert [group["lr"] for group in again_optimizer.param_groups] == [1e-2, 1e-3]
    assert checkpoint.state()["stage"] == "broad"
    assert checkpoint.rank_state(1) is None


def test_the_recipes_settings_apply_and_the_optimizers_state_is_restored(store: CheckpointStore) -> None:
    model = _model(1)[0]
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [{"params": parameters[:2], "lr": 3e-2}, {"params": parameters[2:], "lr": 1e-3}],
        betas=(0.5, 0.6),
        weight_decay=0.2,
    )
    checkpoint = store.newest()
    assert checkpoint is not None
    store.load(checkpoint, model, optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == [3e-2, 1e-3]
    assert {(group["betas"], group["weight_decay"]) for group in optimizer.param_groups} == {((0.5, 0.6), 0.2)}
    assert {int(state["step"]) for state in optimizer.state.values()} == {3}


def test_keeps_the_newest(store: CheckpointStore) -> None:
    assert [checkpoint.step for checkpoint in store.committed()] == [2, 3]


@pytest.mark.guarantee("What is loaded is what was saved, else the newest checkpoint that verifies")
@pytest.mark.parametrize(
    "damage", ["flip", "truncate", "delete_metadata", "no_commit", "stranger", "manifest", "mixed", "dangling"]
)
def test_falls_back_to_the_newest_that_verifies(store: CheckpointStore, damage: str) -> None:
    newest = store.newest()
    assert newest is not None
    assert newest.step == 3
    shard = next((newest.folder / "tensors").glob("*.distcp"))
    if damage == "flip":
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
    elif damage == "truncate":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif damage == "delete_metadata":
        (newest.folder / "tensors" / ".metadata").unlink()
    elif damage == "mixed":  # of the checkpoint before: sizes and names are right
        before = store.committed()[0].folder / "tensors"
        shard.write_bytes((before / shard.name).read_bytes())
        (newest.folder / "tensors" / ".metadata").write_bytes((before / ".metadata").read_bytes())
    elif damage == "dangling":
        shard.unlink()
        shard.symlink_to(newest.folder / "elsewhere")
    elif damage == "no_commit":
        (newest.folder / COMMIT).unlink()
    elif damage == "stranger":
        (newest.folder / "tensors" / "planted.pkl").write_bytes(b"x")
    else:
        (newest.folder / "manifest.json").write_text('{"files": {}}')
    assert problems(newest.folder)
    fallback = store.newest()
    assert fallback is not None
    assert fallback.step == 2


@pytest.mark.guarantee("What is loaded is what was saved, else the newest checkpoint that verifies")
@pytest.mark.parametrize("name", ["step-00000009.attempt-1", "step-00000003.attempt-7"])
def test_a_checkpoint_under_another_name_is_passed_over(store: CheckpointStore, name: str) -> None:
    """It would count steps, samples and metrics from where its weights have not been."""
    copied = store.folder / name
    shutil.copytree(store.committed()[-1].folder, copied)
    assert problems(copied) == [f"{copied}: is of step 3 by attempt 1, as its state.json says; give it that name again"]
    newest = store.newest()
    assert newest is not None
    assert (newest.step, newest.attempt) == (3, 1)


@pytest.mark.parametrize("content", ["", '{"attempt": 1, "cho', "[1]", '{"attempt": 1}', "null", "\x00"])
def test_a_record_of_an_attempt_that_says_nothing_is_one_error(store: CheckpointStore, content: str) -> None:
    record = store.folder / "attempts" / "attempt-1.json"
    record.parent.mkdir(exist_ok=True)
    record.write_text(content)
    with pytest.raises(CheckpointError, match=r"attempt-1.json: .*: does not say what an attempt went on from"):
        store.newest()


def test_when_none_verifies_one_error_names_every_file(store: CheckpointStore) -> None:
    for checkpoint in store.committed():
        (checkpoint.folder / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"no checkpoint verifies(.|\n)*step-00000003(.|\n)*step-00000002"):
        store.newest()


def test_a_missing_folder_is_a_fresh_start(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "nothing", KeepLast()).newest() is None


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    model, optimizer = _model(0)
    _train(model, optimizer, 1)
    with pytest.raises(CheckpointError, match="could not be written"):
        CheckpointStore(tmp_path / "file", KeepLast()).save(1, 1, model, optimizer, {}, {})
