"""The planned peak of a step is the one that the CPU allocator had, at four sizes, in three modes of recomputation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from framework.model.freeze import set_trainable
from framework.model.language_action import LanguageActionModel
from framework.model.param_groups import parameter_groups
from framework.objective.supervised import supervised_tokens
from framework.parallel.gradients import clip_gradients
from framework.recipe.compose import compose
from framework.recipe.instantiate import instantiate
from framework.training.planner.memory import model_state, moments
from framework.training.planner.trace import MicroBatchShape, trace_micro_batch
from framework.training.sft.prepare import prepare_step
from framework.training.stages import SupervisedStage
from framework.training.tasks.train import Train

pytestmark = pytest.mark.slow

SIZES = {"2.0 M": (128, 384, 4), "3.0 M": (192, 576, 4), "7.0 M": (256, 1024, 6), "13.4 M": (512, 1536, 4)}
"""Width, inner width and blocks of the language model, by the parameters of the whole model with its encoders."""
MODES = ("none", "selective", "full")
ROWS = 8


def task_of(size: Sequence[int], mode: str) -> Train:
    """The demo at the tiny scale with another language model, one micro-batch a step."""
    part = "model.backbone.architecture"
    width, inner, blocks = size
    words = [
        "recipe=demo", "scale=tiny", "data.workers=0", f"data.global_batch={ROWS}", f"data.micro_batch={ROWS}",
        f"parallel/recompute={mode}", f"{part}.text.hidden_size={width}", f"{part}.vision.out_hidden_size={width}",
        f"{part}.text.intermediate_size={inner}", f"{part}.text.num_hidden_layers={blocks}",
    ]  # fmt: skip
    task = instantiate(compose(words))
    assert isinstance(task, Train)
    return task


def build(task: Train, stage: SupervisedStage) -> LanguageActionModel:
    """The model as it is trained."""
    model = task.model(special_tokens=task.data.special_tokens)
    set_trainable(model, stage.trainable)
    task.parallel.prepare(model, model.blocks())
    return model


def peak(run: Any) -> int:
    """The most that `run` held of what it allocated, in bytes: the profiler hears every allocation and release."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    results: Any = profiled.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@pytest.mark.guarantee(
    "Predicted memory is what ranks held, and predicted communication the bytes that collectives moved"
)
@pytest.mark.parametrize("size", SIZES)
def test_the_planned_peak_is_that_of_the_allocator(size: str, tmp_path: Path) -> None:
    found = {mode: _planned_and_measured(SIZES[size], mode, tmp_path / mode) for mode in MODES}
    ratios = {mode: round(planned / measured, 3) for mode, (planned, measured) in found.items()}
    assert ratios == pytest.approx(dict.fromkeys(MODES, 1.0), abs=0.05)
    none, selective, full = (found[mode][1] for mode in MODES)
    assert none > 1.5 * selective > 1.5 * full


def _planned_and_measured(size: Sequence[int], mode: str, folder: Path) -> tuple[float, float]:
    """Bytes at a step's peak beyond weights and the optimizer's state."""
    task = task_of(size, mode)
    stage_range = next(task.curriculum.stage_ranges())
    stage = stage_range.stage
    assert isinstance(stage, SupervisedStage)
    model = build(task, stage)
    where: dict[str, Any] = {"stage": stage_range.name, "samples": 1000, "seed": 0, "folder": folder}
    loader = task.data.loader(stage.mixture, model.processor, **where)
    (batch,) = next(iter(loader))
    loader.close()
    step = prepare_step(model, [batch], 0)
    (micro,) = step.micro_batches
    optimizer = stage.optimizer(parameter_groups(model, stage.lr, stage.weight_decay, stage.lr_factors))

    def run() -> None:
        loss = stage.objective(model(micro.batch, micro.sources), model.head, micro.targets)
        (loss.total / step.counts[0]).backward()
        del loss
        clip_gradients(model.parameters(), stage.clip)
        optimizer.step()
        optimizer.zero_grad()

    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # its state exists from the second step on
    optimizer.zero_grad()
    shape = MicroBatchShape(
        rows=1,  # samples are laid out in one row, without their padding
        length=micro.batch["layout"]["size"],
        masked=False,
        patches=len(batch["pixel_values"]),
        learned=supervised_tokens(batch["labels"]),
        sensors={name: tuple(rows["mask"].shape) for name, rows in batch["sensors"].items()},  # type: ignore[misc]
    )
    with torch.device("meta"):
        meta = build(task, stage)
    state = model_state(meta, stage, None, foreach=False)
    passes = trace_micro_batch(meta, stage.traced_loss(), shape, bf16=False, autocast=False)
    return max(sum(parts.values()) for _, parts in moments(state, passes, None, micro_batches=1)), peak(run)
