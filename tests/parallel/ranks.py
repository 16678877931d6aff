"""One rank of the equivalence and resume tests: trains the tiny model, job after job, and writes down what came out."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from framework.checkpoint.retention import KeepLast
from framework.checkpoint.store import CheckpointStore
from framework.model.lora import merged_tensors
from framework.parallel.mesh import Mesh
from framework.parallel.parallelism import Parallelism, world_size
from framework.recipe.compose import compose
from framework.recipe.composition import Composition
from framework.recipe.instantiate import instantiate
from framework.scene.batch import IGNORE_INDEX, MicroBatch
from framework.training.build_model import build_model
from framework.training.sft.module import SupervisedModule
from framework.training.stages import StageRange, resume_schedule
from framework.training.tasks.train import Train
from tests.worlds import worlds

STEPS = 3
SAVED = 1
"""A checkpoint is left after so many steps; the loss of the second step from it tells of the optimizer."""
LENGTH = 512


class Steps(LightningDataModule):
    """The recipe's steps from `start` on, this rank's share of each."""

    def __init__(self, task: Train, module: SupervisedModule, folder: Path, start: int) -> None:
        super().__init__()
        self.task, self.module, self.folder, self.start = task, module, folder, start

    def train_dataloader(self) -> Iterator[list[MicroBatch]]:
        dp_rank = self.task.parallel.data_rank()
        loader = iter(
            self.task.data.loader(
                self.module.stage_range.stage.mixture,
                self.module.model.processor,
                stage="sft",
                samples=8 * STEPS,
                seed=0,
                folder=self.folder,
                world=dp_rank.world,
                rank=dp_rank.rank,
                is_writer=False,
            )
        )
        for _ in range(self.start):
            next(loader)
        return ([padded(batch) for batch in step] for step in loader)


def padded(batch: MicroBatch) -> MicroBatch:
    """With positions that count for nothing, to a multiple of `LENGTH`: for each shape that it has not seen DTensor
    works out again how to cut every operation, which takes many times as long as the operation.
    """
    for key, value in (("input_ids", 0), ("attention_mask", 0), ("mm_token_type_ids", 0), ("labels", IGNORE_INDEX)):
        batch[key] = F.pad(batch[key], (0, -batch[key].shape[1] % LENGTH), value=value)  # type: ignore[literal-required]
    if "segments" in batch:
        batch["segments"] = F.pad(batch["segments"], (0, -batch["segments"].shape[1] % LENGTH))
    return batch


class Record(Callback):
    """What every step gave; with a `store`, a checkpoint after step `saved`, or one that is loaded first."""

    def __init__(self, store: CheckpointStore | None, saved: int, load: bool) -> None:
        self.store, self.saved, self.load = store, saved, load
        self.losses: list[float] = []
        self.norms: list[float] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.load:
            assert self.store is not None
            newest = self.store.newest()
            assert newest is not None
            assert isinstance(pl_module, SupervisedModule)
            self.store.load(newest, pl_module.model, trainer.optimizers[0])
            resume_schedule(trainer.lr_scheduler_configs[0].scheduler, newest.state()["schedule"])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, SupervisedModule)
        pl_module.read_steps()
        self.losses.append(outputs["metrics"]["loss"])
        self.norms.append(outputs["metrics"]["gradient_norm"])
        if self.store is not None and not self.load and len(self.losses) == self.saved:
            schedule = {"schedule": trainer.lr_scheduler_configs[0].scheduler.state_dict()}
            self.store.save(len(self.losses), 1, pl_module.model, trainer.optimizers[0], schedule, {})


def make_task(variant: list[str], mesh: dict[str, int], world: int) -> Train:
    """The curriculum's task at the tiny scale, eight samples a step, on `mesh`."""
    task = instantiate(composed(world, *variant))
    assert isinstance(task, Train)
    given = task.parallel
    parallel = Parallelism("cpu", world, Mesh(**mesh), given.precision, given.recompute, given.compilation, threads=1)
    return Train(**{**vars(task), "parallel": parallel})


@functools.cache
def composed(world: int, *variant: str) -> Composition:
    """Which takes as long as some steps do."""
    overrides = [
        "recipe=supervised",
        "scale=tiny",
        "model.backbone.architecture.text.num_hidden_layers=2",
        "sources.world_train.scenes=48",
        "data.cameras=[front]",
        "data.image_width=48",
        f"paths.cache={worlds()}",
        f"parallel.devices={world}",
    ]
    return compose([*overrides, *variant])


def train(facts: dict[str, Any]) -> None:
    """Train as `facts` say: all steps, or the last from a checkpoint. The first rank writes what came out."""
    torch.manual_seed(0)
    task = make_task(facts["variant"], facts["mesh"], world_size())
    model = build_model(task.model, task.data.special_tokens, task.parallel)
    model.init_weights()
    first = next(task.curriculum.stage_ranges())
    module = SupervisedModule(model, StageRange("sft", first.stage, 0, STEPS), task.parallel)
    store = CheckpointStore(Path(facts["checkpoints"]), KeepLast()) if facts["checkpoints"] else None
    record = Record(store, facts["saved"], facts["load"])
    start = facts["saved"] if facts["load"] else 0
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        trainer = Trainer(
            **task.parallel.trainer_arguments(), max_steps=STEPS - start, max_epochs=-1, logger=False,
            callbacks=[record], enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
            use_distributed_sampler=False, default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(module, datamodule=Steps(task, module, Path(folder), start))
    tensors = {name: _whole(p.detach()).clone() for name, p in model.named_parameters()}
    if "merged" in facts:
        tensors |= {f"merged/{name}": tensor for name, tensor in merged_tensors(model.backbone)}
    if trainer.is_global_zero:
        torch.save(tensors, f"{facts['out']}.pt")
        Path(f"{facts['out']}.json").write_text(json.dumps({"losses": record.losses, "norms": record.norms}))


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def train_all(jobs: list[dict[str, Any]]) -> None:
    """One after the other."""
    for job in jobs:
        train(job)
