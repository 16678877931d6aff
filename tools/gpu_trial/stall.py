"""Step: how long a checkpoint holds up training, of a model and optimizer on the device."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from framework.checkpoint.retention import KeepLast
from framework.checkpoint.save_modes import Asynchronous, SaveMode, Synchronous
from framework.checkpoint.store import CheckpointStore
from framework.model.param_groups import parameter_groups
from framework.parallel.gradients import clip_gradients
from framework.training.sft.prepare import prepare_step
from framework.training.stages import SupervisedStage
from tools.gpu_trial.setting import Setting


def checkpoint_stall(setting: Setting) -> dict[str, Any]:
    """Seconds that a save adds to the steps from it until it is committed, by save mode, and until it is."""
    job = setting.job("0.6b")
    parallel, stage, model = job.parallelism(), job.stage_range.stage, job.build()
    assert isinstance(stage, SupervisedStage)
    optimizer = stage.optimizer(parameter_groups(model, stage.lr, stage.weight_decay, stage.lr_factors))
    step = prepare_step(model, job.batches[0], missing=0).to(torch.device(job.device))

    def train() -> float:
        begin = time.perf_counter()
        for micro in step.micro_batches:
            with parallel.as_trained():
                loss = stage.objective(model(micro.batch, micro.sources), model.head, micro.targets)
            (loss.total / step.counts[0]).backward()
        clip_gradients(model.parameters(), stage.clip)
        optimizer.step()
        optimizer.zero_grad()
        setting.synchronise()
        return time.perf_counter() - begin

    quiet = statistics.median([train() for _ in range(3 if setting.dry else 10)][2:])
    state = sum(each.nbytes for each in model.parameters()) * 3
    figures: dict[str, Any] = {"state_gib": state / 2**30, "quiet_step_s": quiet}
    modes: dict[str, tuple[SaveMode, int]] = {
        "asynchronous": (Asynchronous("process"), 2),
        "synchronous": (Synchronous(), 1),
    }
    for name, (mode, saves) in modes.items():
        with tempfile.TemporaryDirectory() as folder, CheckpointStore(Path(folder), KeepLast(1), mode) as store:
            store.start()
            for number in range(1, saves + 1):  # the first asynchronous save takes its memory
                begin = time.perf_counter()
                store.save(number, 1, model, optimizer, {}, {})
                steps = [time.perf_counter() - begin + train()]
                while not _committed(Path(folder), number) and time.perf_counter() - begin < 60:
                    steps.append(train())
                    store.poll()
                figures[f"{name}, save {number}"] = {
                    "stall_s": sum(steps) - quiet * len(steps),
                    "committed_after_s": time.perf_counter() - begin,
                    "steps_meanwhile": len(steps),
                }
                setting.keep(figures)
                store.finish()
    return figures


def _committed(folder: Path, step: int) -> bool:
    return any(folder.glob(f"*{step:08}*/COMMIT"))
