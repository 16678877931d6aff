"""One rank of the equivalence and resume tests: trains the tiny model, job after job, and writes down what came out.

torchrun ... tests/parallel/ranks.py jobs.json      [{"mesh": {...}, "variant": [...], "out": "...", ...}, ...]
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch.distributed.tensor import DTensor

from framework.checkpoint.retention import KeepLast
from framework.checkpoint.store import CheckpointStore
from framework.data.feed import StageRun
from framework.model.adapters import merged
from framework.parallel.mesh import Mesh
from framework.parallel.placement import Placement, world_size
from framework.recipe.compose import compose
from framework.recipe.instantiate import instantiate
from framework.scene.batch import MicroBatch
from framework.training.curriculum import Span
from framework.training.module import SupervisedModule
from framework.training.placing import placed
from framework.training.train import Train

STEPS = 10


class Steps(LightningDataModule):
    """The recipe's steps from `start` on, this rank's share of each."""

    def __init__(self, task: Train, module: SupervisedModule, folder: Path, start: int) -> None:
        super().__init__()
        self.task, self.module, self.folder, self.start = task, module, folder, start

    def train_dataloader(self) -> Iterator[list[MicroBatch]]:
        place, run = self.task.placement.data_rank(), StageRun("sft", 8 * STEPS, 0, self.folder)
        mixture, processor = self.module.span.stage.mixture, self.module.model.processor
        loader = iter(self.task.data.loader(mixture, processor, run, place.world, place.rank, writes=False))
        for _ in range(self.start):
            next(loader)
        return loader


class Record(Callback):
    """What every step gave; and a checkpoint after step `save_at`, or one that is loaded first."""

    def __init__(self, store: CheckpointStore, save_at: int | None, load: bool) -> None:
        self.store, self.save_at, self.load = store, save_at, load
        self.losses: list[float] = []
        self.norms: list[float] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.load:
            newest = self.store.newest()
            assert newest is not None
            assert isinstance(pl_module, SupervisedModule)
            self.store.load(newest, pl_module.model, trainer.optimizers[0])
            trainer.lr_scheduler_configs[0].scheduler.load_state_dict(newest.state()["schedule"])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, SupervisedModule)
        self.losses.append(outputs["metrics"]["loss"])
        self.norms.append(outputs["metrics"]["gradient_norm"])
        if not self.load and len(self.losses) == self.save_at:
            schedule = {"schedule": trainer.lr_scheduler_configs[0].scheduler.state_dict()}
            self.store.save(len(self.losses), 1, pl_module.model, trainer.optimizers[0], schedule, {})


def make_task(folder: str, variant: list[str], mesh: dict[str, int], world: int) -> Train:
    """The curriculum's task at the tiny scale, eight samples a step, on `mesh`."""
    overrides = [
        "recipe=supervised",
        "scale=tiny",
        "sizes.train_scenes=48",
        "data.cameras=[front]",
        "data.image_width=48",
        f"paths.cache={folder}/cache",
        *variant,
    ]
    task = instantiate(compose([*overrides, f"parallel.devices={world}"]))
    assert isinstance(task, Train)
    given = task.placement
    placement = Placement("cpu", world, Mesh(**mesh), given.precision, given.recompute, given.compilation, threads=1)
    return Train(**{**vars(task), "placement": placement})


def train(facts: dict[str, Any]) -> dict[str, Any]:
    """Train as `facts` say: ten steps, or up to a checkpoint, or five from one."""
    torch.manual_seed(0)
    world = world_size()
    task = make_task(facts["folder"], facts["variant"], facts["mesh"], world)
    model = placed(task.model, task.data.special_tokens, task.placement)
    model.fill()
    first = next(task.curriculum.spans())
    module = SupervisedModule(model, Span("sft", first.stage, 0, STEPS), task.placement)
    store = CheckpointStore(Path(facts["checkpoints"]), KeepLast())
    record = Record(store, facts.get("save_at"), facts.get("load", False))
    start = facts["save_at"] if facts.get("load") else 0
    last = facts["save_at"] if facts.get("save_at") and not facts.get("load") else STEPS
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        trainer = Trainer(
            **task.placement.trainer_arguments(), max_steps=last - start, max_epochs=-1, logger=False,
            callbacks=[record], enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
            use_distributed_sampler=False, default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(module, datamodule=Steps(task, module, Path(folder), start))
    tensors = {name: _whole(p.detach()).clone() for name, p in model.named_parameters()}
    if "merged" in facts:
        tensors |= {f"merged/{name}": tensor for name, tensor in merged(model.backbone)}
    if trainer.is_global_zero:
        torch.save(tensors, facts["weights"])
    return {"losses": record.losses, "norms": record.norms, "rank": trainer.global_rank}


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


if __name__ == "__main__":
    for job in json.loads(Path(sys.argv[1]).read_text()):
        result = train(job)
        if result["rank"] == 0:
            Path(job["out"]).write_text(json.dumps(result))
