"""One rank of the test of unlike rows: texts, images, videos and driving scenes, each on a rank of its own."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer

from framework.data.render.collate import collate, collate_packed
from framework.data.render.sample import Sample
from framework.data.render.tasks import Converse
from framework.parallel.parallelism import world_size
from framework.scene.batch import MicroBatch
from framework.scene.types import Scene
from framework.scene.world.generate import generate_scene
from framework.training.build_model import build_model
from framework.training.sft.module import SupervisedModule
from framework.training.stages import StageRange
from framework.training.tasks.train import Train
from tests.dialogues import dialogue, film, picture, scene_of
from tests.parallel.ranks import Record, _whole, make_task, padded

STEPS = 4
KINDS = ("text", "image", "driving", "video")


def scene(kind: str, step: int) -> Scene:
    """A scene of the kind, another one each step."""
    said = ("assistant", f"It is number {step}. Go on.")
    if kind == "text":
        return scene_of(dialogue(("system", "Be brief."), ("user", f"What is {step}?"), said), f"text-{step}")
    if kind == "image":
        shown = ["Compare ", picture(step), " with ", picture(step + 9, (96, 64)), "."]
        return scene_of(dialogue(("user", shown), said), f"image-{step}")
    if kind == "video":
        shown = [film(step), "and", picture(step + 20), "?"]
        return scene_of(dialogue(("user", shown if step % 2 else shown[:1]), said), f"video-{step}")
    return generate_scene(step, "cut_in")


class Rows(LightningDataModule):
    """Each step's four rows, one of each kind; at another step the kinds are dealt to other ranks.

    Of several ranks the first has a micro-batch for each of its rows, the others one for all.
    """

    def __init__(self, task: Train, module: SupervisedModule, packed: bool) -> None:
        super().__init__()
        self.task, self.module, self.packed = task, module, packed

    def train_dataloader(self) -> Iterator[list[MicroBatch]]:
        rank, world = self.task.parallel.data_rank().rank, self.task.parallel.data_rank().world
        tasks = {**self.task.data.tasks, "converse": Converse()}
        renderer = self.task.data.renderer(self.module.model.processor)
        for step in range(STEPS):
            dealt = [KINDS[(place + step) % len(KINDS)] for place in range(len(KINDS))]
            samples = []
            for kind in dealt[rank::world]:
                name = "drive" if kind == "driving" else "converse"
                each = scene(kind, step)
                samples.append(Sample(renderer.render(each, tasks[name].conversation(each, "test")), each, name))
            if self.packed:
                yield [padded(collate_packed([samples], renderer.special_ids))]
            elif rank == 0:
                yield [padded(collate([sample], renderer.special_ids)) for sample in samples]
            else:
                yield [padded(collate(samples, renderer.special_ids))]


def train(facts: dict[str, Any]) -> None:
    """Train as `facts` say. The first rank writes what came out."""
    torch.manual_seed(0)
    task = make_task([], facts["mesh"], world_size())
    model = build_model(task.model, task.data.special_tokens, task.parallel)
    model.init_weights()
    first = next(task.curriculum.stage_ranges())
    module = SupervisedModule(model, StageRange("sft", first.stage, 0, STEPS), task.parallel)
    record = Record(None, 0, load=False)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        trainer = Trainer(
            **task.parallel.trainer_arguments(), max_steps=STEPS, max_epochs=-1, logger=False, callbacks=[record],
            enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
            use_distributed_sampler=False, default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(module, datamodule=Rows(task, module, facts["packed"]))
    tensors = {name: _whole(p.detach()).clone() for name, p in model.named_parameters()}
    if trainer.is_global_zero:
        torch.save(tensors, f"{facts['out']}.pt")
        Path(f"{facts['out']}.json").write_text(json.dumps({"losses": record.losses, "norms": record.norms}))


def train_all(jobs: list[dict[str, Any]]) -> None:
    """One after the other."""
    for job in jobs:
        train(job)
