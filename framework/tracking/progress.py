"""The progress bar of a stage: loss or reward, tokens/s, step and time left."""

from __future__ import annotations

import logging
import statistics
from contextlib import ExitStack

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from framework.run import console
from framework.run.console import duration, progress_bar
from framework.run.step_output import REWARD, StepOutput

log = logging.getLogger(__name__)

ESTIMATED_FROM = 10
"""Steps from whose median a log's estimate of the time left is made; the first is slow."""
POLICY = {
    "reward": REWARD,
    "entropy": "policy/entropy",
    "KL": "policy/reference_kl",
    "answer tokens": "answers/length",
}
"""What a step of reinforcement learning shows in place of its loss, by the word for it."""


class StepProgressBar(ProgressBar):
    """A bar over the stage's steps. Lightning's own runs over the loader, which is endless.

    Args:
        stage: The stage's name, shown in front of the bar.
        start: Steps trained before the stage: the bar counts the stage's own.
    """

    def __init__(self, stage: str, start: int = 0) -> None:
        super().__init__()
        self.stage = stage
        self.start = start
        self.shown = ExitStack()
        self.bar: console.ProgressBar | None = None
        self.enabled = True
        self.seconds: list[float] = []
        self.end = start

    def disable(self) -> None:
        """Show no bar: Lightning calls this on every rank but the first."""
        self.enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar, from the step of a resumed run."""
        if not self.enabled:
            return
        self.end = trainer.max_steps
        total, done = self.end - self.start, trainer.global_step - self.start
        self.bar = self.shown.enter_context(progress_bar(self.stage, total, done))

    def on_step_read(self, step: int, output: StepOutput) -> None:
        """Advance to the optimizer step."""
        if self.bar is not None:
            self.bar.update(step - self.start, figures(output["metrics"]))
        elif self.enabled and len(self.seconds) < ESTIMATED_FROM:
            self.seconds.append(output["metrics"]["step_s"])
            if len(self.seconds) == ESTIMATED_FROM:
                speed, left = statistics.median(self.seconds), self.end - step
                log.info(
                    "%s: %.2f s a step, %s for the %d that are left", self.stage, speed, duration(speed * left), left
                )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the finished bar on the terminal."""
        self.shown.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        self.shown.close()


def figures(metrics: dict[str, float]) -> str:
    """A step's figures for people: `loss 1.234  5310 tokens/s`, or `reward 0.4  entropy 0.51  ...`."""
    shown = POLICY if REWARD in metrics else {"loss": "loss"}
    parts = [f"{word} {metrics[name]:.4g}" for word, name in shown.items() if name in metrics]
    return "  ".join([*parts, f"{metrics['tokens_per_s']:.0f} tokens/s"])
