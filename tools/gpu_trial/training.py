"""Steps: supervised fine-tuning next to transformers' Trainer and a plain loop, and our own variants of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from tools.bench.peers import TransformersTrainer, versions
from tools.bench.sft import figures_of, measure, shape_of
from tools.bench.sft_sides import Clock, OurSupervisedModule, PlainLoop, SupervisedJob, SupervisedSide, Turn
from tools.gpu_trial.setting import Setting, Size

TRAINER = "transformers.Trainer"


def throughput(setting: Setting, size: Size, unequal: bool) -> dict[str, Any]:
    """Tokens/s, MFU and peak memory of all sides, in turn, of a model of random weights."""
    job, peer = setting.job(size, unequal), TransformersTrainer()
    sides: dict[str, SupervisedSide] = {"ours": OurSupervisedModule(), "plain loop": PlainLoop()}
    installed = versions(peer)
    if all(installed.values()):
        sides[TRAINER] = peer
    turns: dict[str, list[Turn]] = {}
    figures: dict[str, Any] = {"shape": shape_of(job), "trainer": installed}
    for name, side in sides.items():
        turns[name] = [measure(side, job)]
        figures |= figures_of(turns, job)
        setting.keep(figures)
    return figures


def variants(setting: Setting, compiled: bool) -> dict[str, Any]:
    """Ours with one choice changed each, on equal rows: precision, recomputation, attention, kernels and optimizer; or,
    with compiled blocks, in bfloat16 and in float8. A choice that cannot run here says why.
    """
    results: dict[str, Any] = {}
    for name, (size, changes) in (COMPILED if compiled else VARIANTS).items():
        try:
            job = setting.job(size, compiled=compiled, backend=setting.backend, **changes)
            results[name] = alone(job)
        except (ImportError, RuntimeError, ValueError) as error:
            results[name] = {"refused": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
        torch.cuda.empty_cache()
        setting.keep(results)
    return results


Choice = tuple[Size, Mapping[str, Any]]
"""A size, and the fields of the job that change."""
VARIANTS: Mapping[str, Choice] = {
    "0.6b as planned": ("0.6b", {}),
    "0.6b liger": ("0.6b", {"kernels": "liger"}),
    "0.6b fused loss": ("0.6b", {"kernels": "fused_loss"}),
    "0.6b bf16 weights": ("0.6b", {"precision": "bf16-true"}),
    "0.6b recomputed": ("0.6b", {"checkpointing": True}),
    "0.6b sdpa": ("0.6b", {"attention": "sdpa"}),
    "0.6b foreach optimizer": ("0.6b", {"optimizer": "foreach"}),
    "0.6b float32": ("0.6b", {"precision": "32-true"}),
}
COMPILED: Mapping[str, Choice] = {
    "2b bf16": ("2b-vl", {}),
    "2b fp8 tensorwise": ("2b-vl", {"precision": "fp8-tensorwise"}),
    "2b fp8 rowwise": ("2b-vl", {"precision": "fp8-rowwise"}),
}


def alone(job: SupervisedJob) -> dict[str, Any]:
    """The figures of one turn of ours."""
    figures = figures_of({"ours": [measure(OurSupervisedModule(), job)]}, job)
    kept = ("tokens_per_s", "step_ms", "peak_memory_gib", "mfu", "first_step_loss")
    return {name: figures[name]["ours"] for name in kept if name in figures}


def compilation(setting: Setting) -> dict[str, Any]:
    """Compiled blocks over rows of changing lengths: seconds of the first step, graphs, and speed.

    Run twice, the second time finds the first one's code, as the next attempt of a run does.
    """
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(setting.folder / "compiled")
    job = setting.job("0.6b", unequal=True, compiled=True, backend=setting.backend)
    parallel = job.parallelism()
    clock = Clock(job)
    loss = OurSupervisedModule().train(job, clock)
    seconds = [after - before for before, after in zip(clock.marks, clock.marks[1:], strict=False)]
    turn = clock.turn(loss, 0)
    return {
        "graphs": parallel.compilation.metrics()["compiled_graphs"],
        "slowest_warm_up_step_s": max(seconds),
        "step_ms": 1e3 * sum(turn.seconds) / len(turn.seconds),
        "first_step_loss": loss,
        "uncompiled": alone(setting.job("0.6b", unequal=True)),
    }
