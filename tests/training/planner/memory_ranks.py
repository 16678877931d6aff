"""One rank of the memory planner's tests: takes a step of the tiny model and writes down what it held, mesh by mesh."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed.tensor import DTensor

from framework.objective.supervised import supervised_tokens
from framework.parallel.communication import CollectiveCounter
from framework.parallel.parallelism import world_size
from framework.scene.batch import MicroBatch
from framework.training.build_model import build_model
from framework.training.sft.module import SupervisedModule
from framework.training.stages import StageRange
from tests.parallel.ranks import Steps, make_task

CPU = torch.device("cpu")


def held(tensors: Iterable[Tensor | None]) -> int:
    """Bytes of this rank's storages behind `tensors`, each once."""
    local = [t.to_local() if isinstance(t, DTensor) else t for t in tensors if t is not None]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in local}.values())


def shape_of(batch: MicroBatch) -> dict[str, Any]:
    """What the planner needs to know of a micro-batch."""
    return {
        "rows": 1,  # samples are laid out in one row, without their padding
        "length": batch["layout"]["size"],
        "masked": False,
        "patches": len(batch.get("pixel_values", ())),
        "learned": supervised_tokens(batch["labels"]),
        "sensors": {name: tuple(rows["mask"].shape) for name, rows in batch["sensors"].items()},
    }


class Counts(Callback):
    """Weights and gradients before the optimizer's first step, its state after; the most of all in the second step, as
    torch's own tracker counts it; what is sent in the third.
    """

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}
        self.shape: dict[str, Any] = {}
        self.shapes: list[dict[str, Any]] = []
        self.tracker: Any = None
        self.sent: CollectiveCounter | None = None

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        parameters = list(pl_module.model.parameters())
        buffers = list(pl_module.model.buffers())
        self.found.setdefault("parameters", held(parameters) + held(buffers))
        self.found.setdefault("gradients", held(parameter.grad for parameter in parameters))

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if (
            batch_idx == 1 and dist.is_initialized() and len(batch.micro_batches) == 1
        ):  # the tracker bears one forward pass
            self.tracker = FSDPMemTracker(pl_module.model, trainer.optimizers[0])
            self.tracker.__enter__()
        if batch_idx == 2 and dist.is_initialized():
            self.sent = CollectiveCounter()
            self.sent.__enter__()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.tracker is not None:
            self.tracker.__exit__(None, None, None)
            self.found["peak"] = self.tracker.get_tracker_snapshot("peak")[CPU]["Total"]
            self.tracker = None
        if self.sent is not None:
            self.sent.__exit__(None, None, None)
            self.found["sent"] = self.sent.over(trainer.strategy.device_mesh)
            self.shapes = [shape_of(micro.batch) for micro in batch.micro_batches]
        state = trainer.optimizers[0].state
        self.found["optimizer"] = held(t for one in state.values() for t in one.values() if isinstance(t, Tensor))
        if batch_idx == 1:
            self.shape = shape_of(batch.micro_batches[-1].batch)


def step(facts: dict[str, Any]) -> None:
    """Train three steps as `facts` say, and write what was held."""
    torch.manual_seed(0)
    task = make_task(facts["variant"], facts["mesh"], world_size())
    model = build_model(task.model, task.data.special_tokens, task.parallel)
    model.init_weights()
    stage = next(task.curriculum.stage_ranges()).stage
    module, counts = SupervisedModule(model, StageRange("sft", stage, 0, 3), task.parallel), Counts()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        trainer = Trainer(
            **task.parallel.trainer_arguments(), max_steps=3, max_epochs=-1, logger=False, callbacks=[counts],
            enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
            use_distributed_sampler=False, default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(module, datamodule=Steps(task, module, Path(folder), 0))
    found = counts.found | {"shape": counts.shape, "shapes": counts.shapes}
    Path(f"{facts['out']}.{trainer.global_rank}.json").write_text(json.dumps(found))


def step_all(jobs: list[dict[str, Any]]) -> None:
    """One after the other."""
    for job in jobs:
        step(job)
