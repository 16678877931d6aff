"""The preset of bitwise-equal reruns, under Lightning's Trainer."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from framework.recipe.compose import compose
from framework.recipe.instantiate import instantiate
from framework.scene.batch import MicroBatch
from framework.training.sft.module import SupervisedModule
from framework.training.stages import StageRange
from framework.training.tasks.train import Train
from tests.parallel.tiny import build, words

FLASH = "FLASH_ATTENTION_DETERMINISTIC"


class Endless:
    """The same step for ever."""

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        while True:
            yield [words(), words(rows=2)]


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> Iterator[Train]:
    """The tiny recipe under the preset; afterwards the process is what it was."""
    monkeypatch.delenv(FLASH, raising=False)
    yield instantiate(compose(["recipe=demo", "scale=tiny", "parallel/determinism=bitwise"]))
    torch.use_deterministic_algorithms(False)


def _train(task: Train, folder: Path) -> list[Tensor]:
    model = build()
    task.parallel.prepare(model, model.blocks())
    stage = dataclasses.replace(next(task.curriculum.stage_ranges()).stage, lr_factors={})
    module: LightningModule = SupervisedModule(model, StageRange("broad", stage, 0, 3), task.parallel)
    Trainer(
        **task.parallel.trainer_arguments(), max_steps=3, max_epochs=-1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    ).fit(module, Endless())  # fmt: skip
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.slow
@pytest.mark.guarantee("Reruns with `determinism: bitwise` are bit-identical")
def test_two_runs_end_with_the_same_weights_bit_for_bit(task: Train, tmp_path: Path) -> None:
    before = [parameter.detach() for parameter in build().parameters()]
    one, other = _train(task, tmp_path), _train(task, tmp_path)
    assert any(not torch.equal(start, end) for start, end in zip(before, one, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.slow
def test_kernels_are_asked_for_their_deterministic_kind(task: Train, tmp_path: Path) -> None:
    assert os.environ[FLASH] == "1"
    Trainer(**task.parallel.trainer_arguments(), logger=False, default_root_dir=tmp_path)
    assert torch.are_deterministic_algorithms_enabled()
