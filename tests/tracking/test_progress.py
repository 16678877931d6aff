"""The bar of a stage: where a resumed run stands, how long it still takes, and silence without a terminal."""

from __future__ import annotations

import io
import logging
from types import SimpleNamespace
from typing import cast

import pytest
from lightning.pytorch import LightningModule, Trainer
from rich.console import Console
from rich.text import Text

from framework.run import console
from framework.tracking.progress import StepProgressBar

NOBODY = cast(LightningModule, None)


class Screen(io.StringIO):
    """A terminal, or a file, that keeps what was written to it."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def test_a_rank_that_is_not_the_first_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(terminal=True)
    monkeypatch.setattr("sys.stdout", screen)
    trainer = cast(Trainer, SimpleNamespace(global_step=0, max_steps=9, is_global_zero=False))
    progress = StepProgressBar("quality")
    progress.setup(trainer, NOBODY, "fit")
    progress.on_train_start(trainer, NOBODY)
    progress.on_step_read(1, {"metrics": {"loss": 1.0}})  # type: ignore[typeddict-item]
    progress.on_train_end(trainer, NOBODY)
    assert screen.getvalue() == ""


class Stage:
    """A stage shown on a screen, its steps taken and its clock moved by hand."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, first_step: int, end: int, start: int = 0, terminal: bool = True
    ) -> None:
        self.now, self.screen = 1000.0, Screen(terminal)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr("sys.stdout", self.screen)
        if terminal:
            shown = Console(file=self.screen, width=120, get_time=lambda: self.now, force_terminal=True)
            monkeypatch.setattr(console, "console", lambda: shown)
        self.stand_in = SimpleNamespace(global_step=first_step, max_steps=end, is_global_zero=True)
        self.progress = StepProgressBar("quality", start)
        self.progress.setup(self.trainer, NOBODY, "fit")
        self.progress.on_train_start(self.trainer, NOBODY)

    @property
    def trainer(self) -> Trainer:
        return cast(Trainer, self.stand_in)

    def step(self, seconds: float, **metrics: float) -> None:
        self.now += seconds
        self.stand_in.global_step += 1
        outputs = {"metrics": {"loss": 3.14159265, "tokens_per_s": 5310.2, "step_s": seconds, "lr": 0.1} | metrics}
        self.progress.on_step_read(self.stand_in.global_step, outputs)

    @property
    def shown(self) -> str:
        """The bar as it is drawn now."""
        return self.drawn(120)

    def drawn(self, width: int) -> str:
        """The bar as a terminal of so many columns draws it."""
        rendered = Console(width=width, file=io.StringIO())
        rendered.print(self.progress.bar.progress.get_renderable())
        return cast(io.StringIO, rendered.file).getvalue()

    def end(self) -> None:
        self.progress.on_train_end(self.trainer, NOBODY)


def test_the_bar_names_the_stage_its_steps_the_loss_and_the_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, first_step=0, end=20)
    stage.step(2.0)
    assert stage.shown.startswith("quality ")
    assert " 1/20 " in stage.shown
    assert "loss 3.142  5310 tokens/s" in stage.shown
    stage.end()
    assert "quality" in Text.from_ansi(stage.screen.getvalue()).plain, "the finished bar stays"


def test_a_policy_shows_its_reward_instead_of_its_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, first_step=0, end=20)
    stage.step(2.0, **{"reward/mean": -0.5})
    assert "reward -0.5 " in stage.shown
    assert "loss" not in stage.shown
    stage.end()


@pytest.mark.parametrize("width", [60, 80, 100])
def test_a_bar_has_one_line_however_narrow_the_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second line would be drawn again below the first in a log of the terminal."""
    stage = Stage(monkeypatch, first_step=0, end=20)
    stage.step(31.0, **{"reward/mean": -0.4362, "policy/entropy": 0.6602, "answers/length": 40.0})
    (line,) = stage.drawn(width).splitlines()
    assert "1/20 reward -0.4362" in line
    assert line.rstrip().endswith("9 min 49 s left")
    stage.end()


def test_a_resumed_stage_counts_its_own_steps_and_times_its_rest_by_what_it_did_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = Stage(monkeypatch, start=90, first_step=100, end=130)
    for _ in range(10):
        stage.step(2.0)
    assert " 20/40 " in stage.shown
    assert "40 s left" in stage.shown, "twenty steps of two seconds are left"
    stage.end()


def test_an_error_gives_the_terminal_back(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, first_step=0, end=3)
    stage.progress.on_exception(stage.trainer, NOBODY, RuntimeError())
    with console.progress_bar("next", 1) as bar:
        assert bar is not None


def test_a_phase_inside_another_shows_no_bar_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, first_step=0, end=3)
    with console.progress_bar("inner", 1) as bar:
        assert bar is None
    stage.end()


@pytest.mark.parametrize(("terminal", "rank"), [(False, "0"), (True, "1")])
def test_there_is_no_bar_without_a_terminal_nor_on_other_ranks(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, rank: str
) -> None:
    monkeypatch.setenv("RANK", rank)
    stage = Stage(monkeypatch, first_step=0, end=3, terminal=terminal)
    for _ in range(3):
        stage.step(1.0)
    stage.end()
    assert stage.screen.getvalue() == ""


def test_a_log_says_once_how_long_the_stage_takes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage(monkeypatch, first_step=0, end=110, terminal=False)
    with caplog.at_level(logging.INFO, "framework"):
        for step in range(12):
            stage.step(30.0 if step == 0 else 2.0)
    assert caplog.messages == ["quality: 2.00 s a step, 3 min 20 s for the 100 that are left"]
