"""Stages in order, and bad ones named."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest
import torch
from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup

from framework.data.pipeline import DataPipeline
from framework.data.sources.world import WorldShards
from framework.data.stream.mixture import Mixture, Part
from framework.objective.supervised import CrossEntropy
from framework.training.stages import (
    Curriculum,
    Stage,
    StageRange,
    SupervisedStage,
    make_schedule,
    resume_schedule,
    stage_to_resume,
)


def _stage(steps: int) -> Stage:
    return SupervisedStage(
        mixture=Mixture({"world": Part(WorldShards("unused", 1, 0), {"drive": 1.0})}),
        objective=CrossEntropy(),
        optimizer=torch.optim.AdamW,
        schedule=functools.partial(get_cosine_with_min_lr_schedule_with_warmup, min_lr_rate=0.1),
        steps=steps,
        lr=1.0,
        warmup_share=0.2,
    )


def test_steps_count_over_the_whole_curriculum() -> None:
    ranges = list(Curriculum({"broad": _stage(30), "quality": _stage(7)}).stage_ranges())
    assert [(s.name, s.start, s.end) for s in ranges] == [("broad", 0, 30), ("quality", 30, 37)]


def test_a_scale_shortens_every_stage() -> None:
    ranges = list(Curriculum({"broad": _stage(30), "quality": _stage(7)}, max_steps_per_stage=10).stage_ranges())
    assert [(s.start, s.end) for s in ranges] == [(0, 10), (10, 17)]


def test_a_stage_takes_the_datas_batch_unless_it_has_its_own() -> None:
    data = DataPipeline({}, {}, global_batch=256, micro_batch=4, max_length=64)
    assert _stage(1).pipeline(data) == data
    own = dataclasses.replace(_stage(1), global_batch=12).pipeline(data)
    assert (own.global_batch, own.micro_batch) == (12, 4)
    with pytest.raises(ValueError, match=r"curriculum\.stages\.broad\.micro_batch: 0"):
        Curriculum({"broad": dataclasses.replace(_stage(1), micro_batch=0)})


def test_the_schedule_covers_its_own_stage() -> None:
    stage_range = StageRange("quality", _stage(20), 100, 120)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = make_schedule(stage_range, optimizer)
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert max(rates) == rates[4] == 1.0
    assert rates[0] == 0.0
    assert 0.1 <= rates[-1] < 0.13


@pytest.mark.parametrize("stages", [{}, {"broad": _stage(0)}])
def test_a_curriculum_without_work_is_refused(stages: dict[str, Stage]) -> None:
    with pytest.raises(ValueError, match="stages"):
        Curriculum(stages)


def _rates(stage: Stage, steps: int) -> tuple[torch.optim.lr_scheduler.LRScheduler, list[float]]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=stage.lr)
    schedule = make_schedule(StageRange("broad", stage, 0, stage.steps), optimizer)
    rates = []
    for _ in range(steps):
        optimizer.step()
        schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return schedule, rates


@pytest.mark.parametrize(
    "schedule",
    [
        functools.partial(get_cosine_with_min_lr_schedule_with_warmup, min_lr_rate=0.1),
        lambda optimizer, num_warmup_steps, num_training_steps: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9),
    ],
)
@pytest.mark.parametrize("change", [{}, {"lr": 3.0}, {"steps": 33}, {"warmup_share": 0.5}])
def test_a_resumed_schedule_is_that_of_the_recipe_at_the_same_step(schedule: Any, change: dict[str, Any]) -> None:
    old = dataclasses.replace(_stage(20), schedule=schedule)
    new = dataclasses.replace(old, **change)
    saved = _rates(old, 7)[0].state_dict()
    fresh, _ = _rates(new, 0)
    resume_schedule(fresh, saved)
    resumed = []
    for _ in range(5):
        fresh.optimizer.step()
        fresh.step()
        resumed.append(fresh.optimizer.param_groups[0]["lr"])
    assert resumed == _rates(new, 12)[1][7:]  # bit for bit


RANGES = list(Curriculum({"broad": _stage(5), "quality": _stage(3)}).stage_ranges())


@pytest.mark.fault("a stage from another's checkpoint")
@pytest.mark.parametrize(("step", "start"), [(1, 0), (5, 0), (5, None)])
def test_a_stage_goes_on_from_a_checkpoint_of_its_own(step: int, start: int | None) -> None:
    assert stage_to_resume(RANGES, "broad", step, start).name == "broad"


@pytest.mark.fault("a stage from another's checkpoint")
@pytest.mark.parametrize(
    ("name", "step", "start", "now"),
    [
        ("quality", 3, 2, "stage broad"),  # broad was lengthened
        ("broad", 6, 0, "stage quality"),  # broad was shortened
        ("quality", 7, 4, "another part of stage quality"),
        ("gone", 2, 0, "stage broad"),
        ("quality", 9, 5, "no stage"),
    ],
)
def test_a_checkpoint_of_another_stage_is_refused(name: str, step: int, start: int, now: str) -> None:
    with pytest.raises(ValueError, match=f"of step {step}, is of stage {name}; by the recipe .* belongs to {now}"):
        stage_to_resume(RANGES, name, step, start)
