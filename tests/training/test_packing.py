"""Packing the demo's own mixture: little padding, and the same loss as unpacked."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch

from framework.data.stream.loader import StepLoader
from framework.model.language_action import LanguageActionModel
from framework.recipe.compose import compose
from framework.recipe.instantiate import instantiate
from framework.scene.batch import MicroBatch
from framework.training.tasks.train import Train
from tests.worlds import worlds

STEPS = 3


def demo(folder: Path, *overrides: str) -> Train:
    paths = [
        f"paths.cache={worlds()}",
        f"paths.runs={folder}/runs",
        "data.workers=0",
        "sources.world_train.scenes=48",
    ]
    task = instantiate(compose(["recipe=demo", *paths, *overrides]))
    assert isinstance(task, Train)
    return task


def loader(task: Train, model: LanguageActionModel, folder: Path) -> StepLoader:
    mixture = next(task.curriculum.stage_ranges()).stage.mixture
    samples = STEPS * task.data.global_batch
    return task.data.loader(mixture, model.processor, stage="broad", samples=samples, seed=0, folder=folder)


@torch.no_grad()
def summed_loss(task: Train, model: LanguageActionModel, step: list[MicroBatch]) -> float:
    objective, total = next(task.curriculum.stage_ranges()).stage.traced_loss(), 0.0
    for micro in step:
        mask = torch.zeros_like(micro["labels"], dtype=torch.bool)
        mask[:, :-1] = micro["labels"][:, 1:] != -100
        total += float(objective(model(micro, mask), model.head, micro["labels"][:, 1:][mask[:, :-1]]).total)
    return total


@pytest.mark.slow
def test_packed_the_demo_pads_less_than_three_in_a_hundred_and_loses_the_same(tmp_path: Path) -> None:
    packed, padded = demo(tmp_path, "data.pack=1536"), demo(tmp_path)
    model = packed.model(special_tokens=packed.data.special_tokens).eval()
    loaders = [loader(task, model, tmp_path) for task in (packed, padded)]
    shares = []
    for number, steps in enumerate(islice(zip(*loaders, strict=False), STEPS)):
        shares.append([one.metrics["data/padding"] for one in loaders])
        if number == 0:
            ours, theirs = (summed_loss(task, model, step) for task, step in zip((packed, padded), steps, strict=True))
            assert ours == pytest.approx(theirs, rel=1e-5)
    packed_share, padded_share = torch.tensor(shares).mean(dim=0).tolist()
    assert packed_share < 0.03 < padded_share
