"""Stages in order, and bad ones named."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup

from framework.data.pipeline import DataPipeline
from framework.data.sources.world import WorldShards
from framework.data.stream.mixture import Mixture, Part
from framework.objective.supervised import CrossEntropy
from framework.training.stages import Curriculum, Stage, StageRange, SupervisedStage, make_schedule


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
