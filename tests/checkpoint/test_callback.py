"""Saving under Lightning: at step boundaries, never what is not a number, and before a run that must stop ends."""

from __future__ import annotations

import functools
import itertools
import json
import math
import signal
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException

from framework.checkpoint.history import Checkpoint
from framework.checkpoint.manifest import CheckpointError
from framework.checkpoint.policy import CheckpointPolicy
from framework.checkpoint.save_modes import Asynchronous, SaveMode, Synchronous
from framework.parallel.mesh import DataRank
from framework.training.callbacks.checkpoint import TERMINATION_SIGNALS, Checkpointing
from framework.training.callbacks.nonfinite import NonfiniteGuard
from framework.training.sft.module import SupervisedModule
from tests.checkpoint.launch import run
from tests.checkpoint.stage import END, fit
from tests.checkpoint.toy import FullDisk, PausingWriter, make, snapshot, train


def saved(folder: Path) -> list[int]:
    return [checkpoint.step for checkpoint in CheckpointPolicy(1).store(folder).committed()]


@pytest.mark.parametrize("save_mode", [Synchronous(), None])
def test_saves_when_it_is_time_and_at_the_end(tmp_path: Path, save_mode: SaveMode | None) -> None:
    fit(tmp_path, {}, every=4, save_mode=save_mode)
    assert saved(tmp_path) == [4, 8, 10]


@pytest.mark.parametrize("told", ["SIGTERM", "SIGUSR1"])
def test_told_to_end_it_saves_the_step_before(tmp_path: Path, caplog: pytest.LogCaptureFixture, told: str) -> None:
    before = [signal.getsignal(number) for number in TERMINATION_SIGNALS]
    with pytest.raises(SIGTERMException):
        fit(tmp_path, {5: f"{told} to 0"}, every=4)
    assert saved(tmp_path) == [4, 5]
    assert [signal.getsignal(number) for number in TERMINATION_SIGNALS] == before
    assert "Received SIGTERM" not in caplog.text  # Lightning's handler, which broadcasts from inside the signal


def test_a_save_that_is_lost_after_sigterm_is_tried_again(tmp_path: Path) -> None:
    class DiesOnce(Asynchronous):
        def finish(self, within_s: float | None = None) -> bool:
            done = super().finish(within_s)
            return done and (dies.pop() if dies else True)

    dies = [False]
    with pytest.raises(SIGTERMException):
        fit(tmp_path, {5: "SIGTERM to 0"}, every=99, save_mode=DiesOnce("thread"))
    assert saved(tmp_path) == [5]
    assert not dies


def test_the_host_waits_for_no_device_to_learn_of_a_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between ranks Lightning asks on the device, before a step and in `reduce_boolean_decision`."""

    def ask(*_: Any, **__: Any) -> bool:
        pytest.fail("asked on the device")

    monkeypatch.setattr(_TrainingEpochLoop, "_broadcast_sigterm_tensor", ask)
    monkeypatch.setattr(SingleDeviceStrategy, "reduce_boolean_decision", ask)
    module = fit(tmp_path, {})
    module.trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor()


@pytest.mark.slow
@pytest.mark.parametrize("told", [0, 1])
def test_sigterm_to_one_rank_saves_the_same_step_on_all(tmp_path: Path, told: int) -> None:
    job = {"task": "fit", "folder": str(tmp_path / "checkpoints"), "out": str(tmp_path), "event": f"SIGTERM to {told}"}
    assert [found["stopped"] for found in run(2, job)] == [True, True]
    (checkpoint,) = CheckpointPolicy(1).store(tmp_path / "checkpoints").committed()
    assert checkpoint.step == 5
    assert checkpoint.rank_state(1) is not None


def test_resumes_bit_for_bit(tmp_path: Path) -> None:
    undisturbed = fit(tmp_path / "one", {})
    with pytest.raises(SIGTERMException):
        fit(tmp_path / "two", {5: "SIGTERM to 0"})
    resumed = fit(tmp_path / "two", {})
    assert resumed.losses == {step: loss for step, loss in undisturbed.losses.items() if step > 5}
    assert {name: value.tolist() for name, value in snapshot(resumed.model, resumed.toy_optimizer).items()} == {
        name: value.tolist() for name, value in snapshot(undisturbed.model, undisturbed.toy_optimizer).items()
    }


@pytest.mark.parametrize(
    ("before", "now"),
    [((2, 1), (2, 1)), ((2, 1), (1, 2)), ((1, 2), (2, 1)), ((1, 1), (2, 1)), ((2, 2), (2, 1)), ((3, 1), (2, 2))],
    ids=lambda mesh: f"{mesh[0]}x{mesh[1]}",
)
def test_rank_state_of_modules_goes_by_data_parallel_rank(
    before: tuple[int, int], now: tuple[int, int], tmp_path: Path
) -> None:
    """`(data, tensor)`: ranks of a tensor group get the same, the others share all that there was, each thing once."""
    groups, tensor = before
    checkpoint = Checkpoint(4, 1, tmp_path)
    kept = {rank: [f"group {rank}.{number}" for number in range(5)] for rank in range(groups)}
    for rank in range(groups * tensor):
        state = {"module": {"surplus": kept[rank // tensor], "ahead": []}}
        (tmp_path / f"rank-{rank}.json").write_text(json.dumps(state))
    saved = {"world_size": groups * tensor, "data_world": groups}
    resuming = Checkpointing(cast(Any, None), CheckpointPolicy(1), cast(Any, None), checkpoint)
    world, _ = now
    shares = [resuming._inherited_rank_state(DataRank(rank, world), saved).get("surplus", []) for rank in range(world)]
    assert sorted(itertools.chain(*shares)) == sorted(itertools.chain(*kept.values()))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    if groups == world:
        assert shares == list(kept.values()), "in their order, so that nothing changes"


def test_a_stage_is_told_whether_it_begins_or_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []
    monkeypatch.setattr(SupervisedModule, "start_stage", lambda self, store_of, resumed: told.append(resumed))
    with pytest.raises(SIGTERMException):
        fit(tmp_path, {5: "SIGTERM to 0"})
    fit(tmp_path, {})
    assert told == [False, True]


@pytest.mark.guarantee("Non-finite numbers neither change weights nor reach a checkpoint")
@pytest.mark.parametrize("metric", ["loss", "gradient_norm"])
def test_what_is_not_a_number_waits_for_a_step_that_is(tmp_path: Path, metric: str) -> None:
    fit(tmp_path, {4: metric, 5: metric}, every=4)
    assert saved(tmp_path) == [6, 8, 10]


def test_too_many_bad_steps_in_a_row_end_the_run(tmp_path: Path) -> None:
    events = dict.fromkeys((3, 5, 6, 7, 8, 9), "loss")
    with pytest.raises(CheckpointError, match=r"step 7 is not finite \(loss nan\), the 3\. in a row.*allows 2"):
        fit(tmp_path, events)
    assert saved(tmp_path) == [2, 4]


def weights_of(folder: Path, step: int) -> tuple[dict[str, object], dict[str, Any]]:
    """Model and optimizer of the checkpoint of `step`, and its state."""
    model, optimizer = make(1)
    with CheckpointPolicy(1).store(folder) as store:
        (checkpoint,) = (found for found in store.committed() if found.step == step)
        store.load(checkpoint, model, optimizer)
    return {name: value.tolist() for name, value in snapshot(model, optimizer).items()}, checkpoint.state()


def test_a_poisoned_stage_rolls_back_to_the_newest_weights_and_continues_with_the_next_samples(tmp_path: Path) -> None:
    module = fit(tmp_path, dict.fromkeys((3, 5, 6, 7), "loss"), roll_backs=1)
    assert saved(tmp_path) == [2, 4, 7, 8, 10]
    before, _ = weights_of(tmp_path, 4)
    after, state = weights_of(tmp_path, 7)
    assert after == before
    assert weights_of(tmp_path, 8)[0] != before
    assert state["cursor"] == {"committed": 7}
    assert state["went_back"] == [7]
    assert state["schedule"]["last_epoch"] == 7
    assert module.toy_optimizer.param_groups[0]["lr"] == pytest.approx(0.125 * make(0)[1].param_groups[0]["lr"])


def test_weights_that_give_no_good_step_are_left_for_older_ones(tmp_path: Path) -> None:
    fit(tmp_path, dict.fromkeys(range(5, 11), "loss"), roll_backs=2)
    assert saved(tmp_path) == [2, 4, 7, 10]
    assert weights_of(tmp_path, 7)[0] == weights_of(tmp_path, 4)[0]
    assert weights_of(tmp_path, 10)[0] == weights_of(tmp_path, 2)[0]


def test_a_step_that_was_not_judged_yet_does_not_speak_for_the_weights_rolled_back_to(tmp_path: Path) -> None:
    """Step 7, after the first rollback, is not saved, and so is read a step late."""
    fit(tmp_path, dict.fromkeys(range(5, 9), "loss"), bad_steps=1, roll_backs=2)
    assert saved(tmp_path) == [2, 4, 6, 8, 10]
    assert weights_of(tmp_path, 6)[0] == weights_of(tmp_path, 4)[0]
    assert weights_of(tmp_path, 8)[0] == weights_of(tmp_path, 2)[0]


def test_the_budget_of_rollbacks_outlives_an_attempt(tmp_path: Path) -> None:
    with pytest.raises(SIGTERMException):
        fit(tmp_path, {**dict.fromkeys((3, 4, 5), "loss"), 6: "SIGTERM to 0"}, roll_backs=1)
    assert saved(tmp_path) == [2, 5, 6]
    with pytest.raises(
        CheckpointError, match=r"step 9 is .*bad_steps allows 2 and checkpoint\.roll_backs 1; the newest"
    ):
        fit(tmp_path, dict.fromkeys((7, 8, 9), "loss"), roll_backs=1)


def test_there_must_be_a_checkpoint_to_roll_back_to(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint to roll back to"):
        fit(tmp_path, dict.fromkeys((1, 2, 3), "loss"), roll_backs=1)


def test_a_stage_does_not_end_with_what_is_not_a_number(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"stage toy ends, but step 10 is not finite"):
        fit(tmp_path, {END: "gradient_norm"})
    assert saved(tmp_path) == [2, 4, 6, 8]


@pytest.mark.guarantee("At most one save is in flight, and a failed one surfaces at the next step")
def test_a_failed_save_ends_the_run_at_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"the save of step 4 failed: .*No space left"):
        fit(tmp_path, {}, save_mode=Asynchronous("thread", writer=FullDisk))
    assert saved(tmp_path) == [2]


def test_an_error_in_training_lets_the_save_in_flight_finish(tmp_path: Path) -> None:
    slow = functools.partial(PausingWriter, str(tmp_path), "upload", 8)
    (tmp_path / "go").touch()
    with pytest.raises(CheckpointError, match="in a row"):
        fit(tmp_path, {9: "loss"}, every=8, bad_steps=0, save_mode=Asynchronous("thread", writer=slow))
    assert saved(tmp_path) == [8]


def test_metrics_are_means_since_the_checkpoint_before(tmp_path: Path) -> None:
    module = fit(tmp_path, {4: "loss"}, every=5)
    first, second = CheckpointPolicy(1).store(tmp_path).committed()
    assert first.metrics["loss"] == pytest.approx(sum(module.losses[step] for step in (1, 2, 3, 5)) / 4)
    assert second.metrics["loss"] == pytest.approx(sum(module.losses[step] for step in range(6, 11)) / 5)
    assert first.state()["cursor"] == {"committed": 5}


def test_the_guard_forgives_after_a_good_step() -> None:
    guard = NonfiniteGuard(1)
    for step, loss in enumerate((1.0, math.inf, 2.0, math.nan, 3.0)):
        guard.add(step, {"loss": loss, "gradient_norm": 1.0})
        assert guard.finite == math.isfinite(loss)
    assert guard.pop_means() == {"loss": 2.0, "gradient_norm": 1.0}
    assert guard.pop_means() == {}


def test_saving_draws_no_random_number(tmp_path: Path) -> None:
    model, optimizer = make(0)
    train(model, optimizer)
    policy = CheckpointPolicy(1, save_mode=Asynchronous("thread"))
    before = torch.get_rng_state()
    with policy.store(tmp_path) as store:
        store.save(1, 1, model, optimizer, {}, {})
        assert store.finish()
    assert torch.equal(torch.get_rng_state(), before)
