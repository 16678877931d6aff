"""How fast a step went by a clock of our own, who hears of it, and when."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from framework.run.heartbeat import parse_heartbeat
from framework.run.step_output import StepOutput
from framework.tracking.step_logger import StepLogger
from framework.tracking.step_meter import StepMeter


class Listener:
    """A logger that keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.heard.append((step, dict(metrics)))


class Race:
    """Steps that take the seconds they are told to, on a clock that does nothing else."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, logger: StepLogger, listeners: int = 1, first_step: int = 0
    ) -> None:
        self.now = 1000.0
        monkeypatch.setattr("framework.tracking.step_meter.time", SimpleNamespace(perf_counter=lambda: self.now))
        self.listeners = [Listener() for _ in range(listeners)]
        self.stand_in = SimpleNamespace(global_step=first_step, loggers=self.listeners, world_size=1)
        self.module = cast(LightningModule, SimpleNamespace(device=torch.device("cpu")))
        self.logger = logger
        logger.setup(self.trainer, self.module, "fit")
        logger.on_train_start(self.trainer, self.module)

    @property
    def trainer(self) -> Trainer:
        return cast(Trainer, self.stand_in)

    def step(self, seconds: float, tokens: int = 600, samples: int = 12, loss: float = 1.5) -> StepOutput:
        self.now += seconds
        self.stand_in.global_step += 1
        output: StepOutput = {
            "loss": torch.tensor(loss),
            "tokens": tokens,
            "samples": samples,
            "metrics": {"loss": loss},
        }
        meter: Any = self.module.step_meter  # as the training module does at the end of its step
        meter.end_step(self.stand_in.global_step, output)
        self.logger.on_step_read(self.stand_in.global_step, output)
        return output


def test_a_step_lasts_from_the_end_of_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    race = Race(monkeypatch, StepLogger("demo", 1, "broad", StepMeter(every=1)))
    for seconds, tokens, samples in ((2.0, 600, 12), (0.5, 100, 4), (8.0, 1200, 2)):
        metrics = race.step(seconds, tokens, samples)["metrics"]
        assert metrics == pytest.approx(
            {"loss": 1.5, "step_s": seconds, "tokens_per_s": tokens / seconds, "samples_per_s": samples / seconds}
        )


def test_the_clock_starts_with_the_training_not_with_the_callback(monkeypatch: pytest.MonkeyPatch) -> None:
    race = Race(monkeypatch, StepLogger("demo", 1, "broad", StepMeter(every=1)))
    race.now += 500.0
    race.logger.on_train_start(race.trainer, race.module)
    assert race.step(2.0)["metrics"]["step_s"] == pytest.approx(2.0)


def test_every_logger_hears_every_nth_step_of_the_whole_run(monkeypatch: pytest.MonkeyPatch) -> None:
    race = Race(monkeypatch, StepLogger("demo", 1, "broad", StepMeter(every=4)), listeners=2, first_step=6)
    for _ in range(8):
        race.step(2.0)
    for listener in race.listeners:
        assert [step for step, _ in listener.heard] == [8, 12]
        assert listener.heard[0][1] == pytest.approx(
            {"loss": 1.5, "step_s": 2.0, "tokens_per_s": 300.0, "samples_per_s": 6.0}
        )


def test_the_heart_beats_every_step(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    race = Race(monkeypatch, StepLogger("demo", 3, "quality", StepMeter(every=100)), first_step=41)
    race.step(0.5, tokens=700, loss=2.25)
    race.step(2.0, tokens=700, loss=1.125)
    printed = capsys.readouterr().out.splitlines()
    beats = [beat for line in printed if (beat := parse_heartbeat(line)) is not None]
    assert [(b.run, b.attempt, b.stage, b.step) for b in beats] == [
        ("demo", 3, "quality", 42),
        ("demo", 3, "quality", 43),
    ]
    assert [(b.loss, b.tokens_per_s, b.step_s) for b in beats] == [(2.25, 1400.0, 0.5), (1.125, 350.0, 2.0)]
    assert len(printed) == len(beats)
    assert race.listeners[0].heard == []


def test_one_process_of_a_node_beats_and_all_measure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    race = Race(monkeypatch, StepLogger("demo", 1, "broad", StepMeter(every=1)))
    assert race.step(2.0)["metrics"]["tokens_per_s"] == pytest.approx(300.0)
    assert capsys.readouterr().out == ""
    assert len(race.listeners[0].heard) == 1
