"""Step: where the host waits for the device within a step."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

import torch
from lightning.pytorch import Callback

from framework.objective.supervised import CrossEntropy
from framework.training.sft.prepare import prepare_step
from tools.bench.sft_sides import Clock, OurSupervisedModule, SupervisedJob
from tools.gpu_trial.setting import Setting


def host_syncs(setting: Setting) -> dict[str, Any]:
    """Both passes of a prepared step with synchronisation forbidden, and the places where whole steps of the trainer
    synchronise. CUDA alone reports these; elsewhere the same code runs unwatched.
    """
    job = setting.job("0.6b", unequal=True)
    try:
        _passes(setting, job)
        refused = None
    except RuntimeError as error:
        refused = str(error).splitlines()[0]
    watched = Watched(setting, job.warm_up)
    OurSupervisedModule(callbacks=[watched]).train(job, Clock(job))
    return {
        "watched": setting.device == "cuda",
        "passes_with_syncs_forbidden": refused or "no synchronisation",
        "steps": watched.steps,
        "syncs_of_the_trainer_by_place": dict(watched.places.most_common(20)),
    }


def _passes(setting: Setting, job: SupervisedJob) -> None:
    model = job.build()
    parallel = job.parallelism()
    for batch in job.batches:
        step = prepare_step(model, batch, missing=0).to(torch.device(setting.device))
        for micro in step.micro_batches:
            setting.synchronise()
            _forbid(setting, "error" if batch is job.batches[-1] else "default")  # the first passes allocate
            try:
                with parallel.as_trained():
                    loss = CrossEntropy()(model(micro.batch, micro.sources), model.head, micro.targets)
                loss.total.backward()
            finally:
                _forbid(setting, "default")


def _forbid(setting: Setting, mode: str) -> None:
    if setting.device == "cuda":
        torch.cuda.set_sync_debug_mode(mode)


class Watched(Callback):
    """Counts the places that synchronise within the steps that count.

    Args:
        setting: Where the trial runs.
        warm_up: Steps that are not watched.
    """

    def __init__(self, setting: Setting, warm_up: int) -> None:
        self.setting = setting
        self.warm_up = warm_up
        self.steps = 0
        self.places: Counter[str] = Counter()
        self._catching: Any = None
        self._caught: list[warnings.WarningMessage] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Begin to watch."""
        if batch_idx >= self.warm_up:
            self._catching = warnings.catch_warnings(record=True)
            self._caught = self._catching.__enter__()
            warnings.simplefilter("always")
            _forbid(self.setting, "warn")

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count what was caught."""
        if self._catching is not None:
            _forbid(self.setting, "default")
            self._catching.__exit__(None, None, None)
            self._catching = None
            self.steps += 1
            self.places.update(
                f"{one.filename}:{one.lineno}" for one in self._caught if "synchroniz" in str(one.message)
            )
