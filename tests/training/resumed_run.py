"""The command of the framework, ended by a probe at a step of the reinforcement learning that it trains."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from lightning.pytorch import Callback, LightningModule, Trainer

from framework.__main__ import main
from framework.parallel.gradients import clip_gradients
from framework.recipe.catalogue import Catalogue
from framework.training import stage_module
from framework.training.rl.module import PolicyModule
from framework.training.tasks.train import Train


class EndError(Exception):
    """The run has come to the step that it is to end at."""


@dataclass
class Seen:
    """What a run trains with, while it does."""

    trainer: Trainer
    module: PolicyModule
    task: Train
    metrics: dict[str, float] = field(default_factory=dict)
    """The last step's; empty before the first step of this attempt."""
    norms: list[float] = field(default_factory=list)
    """The norms to which gradients were clipped in this attempt."""

    @property
    def group(self) -> dict[str, Any]:
        """The optimizer's first group, whose weights decay."""
        groups: list[dict[str, Any]] = self.trainer.optimizers[0].param_groups
        return max(groups, key=lambda group: float(group["weight_decay"]))


class Watch(Callback):
    """Writes what `probe` sees once `step` steps are trained, and saved where a save is due, and ends the run."""

    def __init__(self, step: int, probe: Callable[[Seen], Any], report: Path, task: Train, norms: list[float]) -> None:
        self.step, self.probe, self.report, self.task, self.norms = step, probe, report, task, norms

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._look(trainer, pl_module, {})

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, PolicyModule)
        pl_module.read_steps()
        self._look(trainer, pl_module, {name: float(value) for name, value in outputs["metrics"].items()})

    def _look(self, trainer: Trainer, module: LightningModule, metrics: dict[str, float]) -> None:
        if trainer.global_step == self.step:
            assert isinstance(module, PolicyModule)
            seen = Seen(trainer, module, self.task, metrics, self.norms)
            self.report.write_text(json.dumps(self.probe(seen)))
            raise EndError


def ended(words: Sequence[str], root: Path, step: int, probe: Callable[[Seen], Any], report: Path) -> int:
    """Run the command `words` with the recipes below `root` until `step` steps are trained. Nothing is evaluated."""
    norms: list[float] = []

    def clip(parameters: Any, norm: float) -> Any:
        norms.append(norm)
        return clip_gradients(parameters, norm)

    def watched(task: Train, **named: Any) -> Trainer:
        return Trainer(**{**named, "callbacks": [*named["callbacks"], Watch(step, probe, report, task, norms)]})

    fit = Train._fit

    def fitted(task: Train, *arguments: Any) -> None:
        with patch("framework.training.tasks.train.Trainer", lambda **named: watched(task, **named)):
            fit(task, *arguments)

    with (
        patch.object(Train, "_fit", fitted),
        patch.object(Train, "_evaluate", lambda *_: []),
        patch.object(stage_module, "clip_gradients", clip),
    ):
        try:
            return main(words, Catalogue(root))
        except EndError:
            return 0
