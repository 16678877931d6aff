"""Step: the planned peak of memory against the allocator's, and what the device holds in addition to tensors."""

from __future__ import annotations

from typing import Any

import torch

from framework.model.backbone import RandomBackbone
from framework.model.language_action import LanguageActionModel
from framework.model.param_groups import parameter_groups
from framework.objective.supervised import supervised_tokens
from framework.parallel.gradients import clip_gradients
from framework.training.planner.memory import model_state, moments
from framework.training.planner.trace import MicroBatchShape, trace_micro_batch
from framework.training.sft.prepare import PreparedStep, prepare_step
from framework.training.stages import SupervisedStage
from tools.bench.sft_sides import SupervisedJob
from tools.gpu_trial.setting import Setting, Size

ENTRIES = 5_000
"""Allocations that the snapshot holds: some megabytes."""


def planned_memory(setting: Setting) -> dict[str, Any]:
    """Bytes at a step's peak, by plan and by the allocator, with and without recomputation. Of the last one a snapshot
    is left in the trial's folder, for torch's memory viewer. A CPU's allocator keeps no count: a dry run only plans.
    """
    figures: dict[str, Any] = {}
    sizes: tuple[Size, ...] = ("0.6b", "2b-vl")
    for size in sizes:
        for recomputed in (False, True):
            job = setting.job(size, checkpointing=recomputed)
            ours = _measured(setting, job)
            torch.cuda.empty_cache()
            planned = _planned(job)
            figures[f"{size}, {'recomputed' if recomputed else 'kept'}"] = {
                "planned_gib": planned / 2**30,
                **ours,
                "planned_over_measured": planned / 2**30 / ours["allocated_gib"] if ours else None,
            }
            setting.keep(figures)
    return figures


def _planned(job: SupervisedJob) -> int:
    """Bytes of weights, gradients, optimizer and activations at the moment that needs most, without the reserve."""
    parallel, stage = job.parallelism(), job.stage_range.stage
    assert isinstance(stage, SupervisedStage)
    with torch.device("meta"):
        meta = LanguageActionModel(RandomBackbone(job.architecture, attention=job.attention), {}).train()
    parallel.precision.cast(meta)
    parallel.recompute.apply(meta.blocks())
    gpu, bf16 = job.device == "cuda", parallel.precision.arithmetic == "bfloat16"
    state = model_state(meta, stage, None, foreach=gpu, device=job.device)
    micro = max(job.batches[0], key=lambda each: int(each["attention_mask"].sum()))
    shape = MicroBatchShape(
        rows=1,  # samples are laid out in one row
        length=int(micro["attention_mask"].sum()),
        masked=False,
        patches=len(micro.get("pixel_values", ())),
        learned=supervised_tokens(micro["labels"]),
        sensors={},
    )
    passes = trace_micro_batch(meta, stage.traced_loss(), shape, bf16, autocast=parallel.precision.mixed)
    most = max(sum(parts.values()) for _, parts in moments(state, passes, None, len(job.batches[0])))
    return state.parameters + state.optimizer + most


def _measured(setting: Setting, job: SupervisedJob) -> dict[str, float]:
    """What the allocator held at most in the third step, when the optimizer's state is there, and reserved."""
    parallel, stage, model = job.parallelism(), job.stage_range.stage, job.build()
    assert isinstance(stage, SupervisedStage)
    parallel.prepare(model, model.blocks())
    optimizer = stage.optimizer(parameter_groups(model, stage.lr, stage.weight_decay, stage.lr_factors))
    step = prepare_step(model, job.batches[0], missing=0).to(torch.device(job.device))

    def train(step: PreparedStep) -> None:
        for micro in step.micro_batches:
            with parallel.as_trained():
                loss = stage.objective(model(micro.batch, micro.sources), model.head, micro.targets)
            (loss.total / step.counts[0]).backward()
        clip_gradients(model.parameters(), stage.clip)
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(2):
        train(step)
    if setting.device != "cuda":
        return {}
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.memory._record_memory_history(max_entries=ENTRIES)
    train(step)
    torch.cuda.memory._dump_snapshot(str(setting.folder / "memory_snapshot.pickle"))
    torch.cuda.memory._record_memory_history(enabled=None)
    counted, (free, total) = torch.cuda.memory_stats(), torch.cuda.mem_get_info()
    reserved = counted["reserved_bytes.all.peak"]
    return {
        "allocated_gib": counted["allocated_bytes.all.peak"] / 2**30,
        "reserved_gib": reserved / 2**30,
        "fragments_gib": counted["inactive_split_bytes.all.peak"] / 2**30,
        "outside_the_allocator_gib": (total - free - counted["reserved_bytes.all.current"]) / 2**30,
        "retries": counted["num_alloc_retries"],
    }
