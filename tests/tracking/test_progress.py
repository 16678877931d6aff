"""The bar of a stage: where a resumed run stands, how long it still takes, and silence without a terminal."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace
from typing import cast

import pytest
from lightning.pytorch import LightningModule, Trainer

from framework.tracking.progress import StepProgressBar

NOBODY = cast(LightningModule, None)


class Screen(io.StringIO):
    """A terminal, or a file, that keeps what was written to it."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


class Stage:
    """A stage shown on a screen, its steps taken and its clock moved by hand."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        first_step: int,
        end: int,
        every: int = 1,
        terminal: bool = True,
        first: bool = True,
    ) -> None:
        self.now, self.screen = 1000.0, Screen(terminal)
        monkeypatch.setattr("tqdm.std.time", lambda: self.now)
        monkeypatch.setattr("sys.stdout", self.screen)
        monkeypatch.setattr("sys.stderr", self.screen)
        self.stand_in = SimpleNamespace(global_step=first_step, max_steps=end, is_global_zero=first)
        self.progress = StepProgressBar("quality", every)
        self.progress.setup(self.trainer, NOBODY, "fit")
        self.progress.on_train_start(self.trainer, NOBODY)
        self.progress.on_train_epoch_start(self.trainer, NOBODY)

    @property
    def trainer(self) -> Trainer:
        return cast(Trainer, self.stand_in)

    def step(self, seconds: float, loss: float = 1.0) -> None:
        self.now += seconds
        self.stand_in.global_step += 1
        outputs = {"metrics": {"loss": loss, "tokens_per_s": 5310.2, "lr": 0.1}}
        self.progress.on_train_batch_end(self.trainer, NOBODY, outputs, None, 0)

    @property
    def shown(self) -> str:
        """The bar as it was last drawn."""
        return re.split(r"[\r\n]", self.screen.getvalue().rstrip())[-1]


def test_the_bar_names_the_stage_its_steps_the_loss_and_the_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, first_step=0, end=20)
    stage.step(2.0, loss=3.14159265)
    assert stage.shown.startswith("quality:")
    assert "1/20" in stage.shown
    assert "loss=3.142" in stage.shown
    assert re.search(r"tokens_per_s=5[.,]?31", stage.shown)
    assert "lr=" not in stage.shown


def test_a_resumed_stage_begins_where_it_was_left_and_its_rest_is_timed_by_what_it_did_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = Stage(monkeypatch, first_step=100, end=130)
    for _ in range(10):
        stage.step(2.0)
    assert "110/130" in stage.shown
    assert "00:20<00:40" in stage.shown, "twenty steps of two seconds are left"


def test_every_few_steps_are_shown_and_always_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    stage, seen = Stage(monkeypatch, first_step=3, end=11, every=4), []
    for _ in range(8):
        stage.step(1.0)
        seen.append(stage.progress.train_progress_bar.n)
    assert seen == [4, 4, 4, 4, 8, 8, 8, 11]


@pytest.mark.parametrize(("terminal", "first"), [(False, True), (True, False)])
def test_there_is_no_bar_without_a_terminal_nor_on_other_ranks(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, first: bool
) -> None:
    stage = Stage(monkeypatch, first_step=0, end=3, terminal=terminal, first=first)
    for _ in range(3):
        stage.step(1.0)
    assert stage.progress.train_progress_bar.disable
    assert stage.screen.getvalue() == ""
