"""A step of DAPO, ours against trl's `GRPOTrainer` with its `generate` engine: seconds a step, phase by phase.

    OMP_NUM_THREADS=1 python -m tools.bench.dapo [--repeats 5 --steps 4 --prompts 8 --group 16 --tokens 64 --out ...]

The sides (`tools.bench.dapo_sides`, `dapo_trl`) take turns in one process, each turn with a new model of the same
weights. These are the tiny model's after `--taught` steps of supervised fine-tuning on the same task, so that most
answers spell plans, end where they should and are judged by driving them. Sensors and their encoders are left out:
trl's processor knows images and text. Dynamic sampling is off, which trl does not have.

A ratio is that of the medians of a repeat's steps. On a machine that others use, the ratio of the process's own core
seconds (`core_ratio`) is the steadier one. Phases do not add up to the step: what is between them is neither's.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import itertools
import logging
import os
import statistics
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from framework.data.render.tasks import Drive
from framework.objective.supervised import CrossEntropy, next_token_positions, supervised_tokens
from framework.recipe.compose import compose
from framework.recipe.instantiate import instantiate
from framework.training.rl.stage import PolicyStage
from framework.training.tasks.train import Train
from tools.bench.dapo_sides import PHASES, FreeDrive, OurPolicyModule, PolicyJob, PolicySide, PolicyTurn
from tools.bench.dapo_trl import GRPOTrainer
from tools.bench.machine import write_result
from tools.bench.peers import versions

BAR = 1.5
WARM_UP = 1
"""Steps at the start of each turn that do not count: memory is taken."""
TAUGHT_LR = 2e-3


def free_text_task(
    prompts: int, group: int, tokens: int, cache: Path, words: Sequence[str] = ()
) -> tuple[Train, PolicyStage]:
    """The recipe without sensors, grammar and filter, and its only stage: steps of `prompts` prompts, each with `group`
    answers of at most `tokens` tokens.

    Shards are kept in `cache`; `words` are further overrides of the recipe.
    """
    rows = [f"stage.global_batch={prompts}", f"data.micro_batch={prompts}", "data.workers=0"]
    folders = [f"paths.cache={cache}", f"paths.runs={cache}"]
    stage_words = [f"group_size={group}", f"max_new_tokens={tokens}", f"generation_batch_size={prompts * group}"]
    choices = [
        "stage/objective/advantages=group_relative",
        "stage/filter=none",
        "stage/prompt_weights=none",
    ]  # as TRL's
    scenes = ["model.encoders={}", "sources.world_hard.scenes=240", "init_from=null"]
    stage_words = [f"curriculum.stages.rl.{word}" for word in stage_words]
    task: Train = instantiate(
        compose(["recipe=rl_dapo", "scale=tiny", *rows, *folders, *choices, *scenes, *stage_words, *words])
    )
    drive = task.data.tasks["drive"]
    assert isinstance(drive, Drive)
    pipeline = dataclasses.replace(task.data, sensors={}, tasks={"drive": FreeDrive(drive)})
    task = dataclasses.replace(task, data=pipeline)
    stage = next(task.curriculum.stage_ranges()).stage
    assert isinstance(stage, PolicyStage)
    return task, stage


def make_job(options: argparse.Namespace, cache: Path) -> PolicyJob:
    """The task that the options ask for, and a model that has been taught it."""
    task, stage = free_text_task(options.prompts, options.group, options.tokens, cache)
    weights = taught(task, stage, options.taught, options.lr_taught)
    return PolicyJob(task, stage, weights, WARM_UP + options.steps, WARM_UP)


def taught(task: Train, stage: PolicyStage, steps: int, rate: float) -> Mapping[str, Tensor]:
    """Weights after `steps` supervised steps on the stage's own scenes."""
    torch.manual_seed(0)
    model = task.model(special_tokens=task.data.special_tokens).train()
    optimizer, objective = torch.optim.AdamW(model.parameters(), lr=rate), CrossEntropy()
    with tempfile.TemporaryDirectory() as folder:
        pipeline = dataclasses.replace(task.data, micro_batch=16, global_batch=16)
        where: dict[str, Any] = {"stage": "taught", "samples": 10**6, "seed": 1, "folder": Path(folder)}
        loader = pipeline.loader(stage.mixture, model.processor, **where, is_writer=False)
        for (batch,) in itertools.islice(loader, steps):
            positions, targets = next_token_positions(batch["labels"])
            loss = objective(model(batch, positions), model.head, targets).total / supervised_tokens(batch["labels"])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        loader.close()
    print(f"taught: {steps} steps, the last's loss {float(loss.detach()):.3f}", flush=True)
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def run(job: PolicyJob, sides: Mapping[str, PolicySide], repeats: int) -> dict[str, list[PolicyTurn]]:
    """All turns, the sides in turn: every repeat begins with another."""
    turns: dict[str, list[PolicyTurn]] = {name: [] for name in sides}
    for repeat in range(repeats):
        first = repeat % len(sides)
        for name in [*list(sides)[first:], *list(sides)[:first]]:
            torch.manual_seed(repeat)
            turn = sides[name].train(job, job.warm_up)
            gc.collect()
            turns[name].append(turn)
            print(name, told(turn), flush=True)
    return turns


def told(turn: PolicyTurn) -> str:
    """A turn in a line."""
    step = statistics.median(turn.clock.counted("step", 0))
    return f"{step:.2f} s a step, {turn.length:.1f} tokens, reward {turn.reward:.3f}, {turn.parsed:.0%} parsed"


def figures_of(turns: Mapping[str, Sequence[PolicyTurn]]) -> dict[str, Any]:
    """Medians, every repeat, and how many times as fast ours is."""

    def median(name: str, part: str, kind: int) -> float:
        return statistics.median(value for turn in turns[name] for value in turn.clock.counted(part, kind))

    each = {
        name: [[statistics.median(turn.clock.counted("step", kind)) for turn in results] for kind in (0, 1)]
        for name, results in turns.items()
    }
    peers = [name for name in turns if name != "ours"]
    ratios = {
        name: [
            [theirs / ours for ours, theirs in zip(each["ours"][kind], each[name][kind], strict=True)]
            for kind in (0, 1)
        ]
        for name in peers
    }
    return {
        "step_s": {name: median(name, "step", 0) for name in turns},
        "step_core_s": {name: median(name, "step", 1) for name in turns},
        "step_s_of_each_repeat": {name: results[0] for name, results in each.items()},
        "step_core_s_of_each_repeat": {name: results[1] for name, results in each.items()},
        "noise": {name: (max(of[0]) - min(of[0])) / statistics.median(of[0]) for name, of in each.items()},
        "phase_s": {name: {phase: median(name, phase, 0) for phase in PHASES} for name in turns},
        "phase_core_s": {name: {phase: median(name, phase, 1) for phase in PHASES} for name in turns},
        "ratio": {name: statistics.median(results[0]) for name, results in ratios.items()},
        "core_ratio": {name: statistics.median(results[1]) for name, results in ratios.items()},
        "ratio_of_each_repeat": {name: results[0] for name, results in ratios.items()},
        "core_ratio_of_each_repeat": {name: results[1] for name, results in ratios.items()},
        "bar": BAR,
        "answer_tokens": {name: statistics.mean(turn.length for turn in results) for name, results in turns.items()},
        "reward": {name: statistics.mean(turn.reward for turn in results) for name, results in turns.items()},
        "parsed": {name: statistics.mean(turn.parsed for turn in results) for name, results in turns.items()},
    }


def table(figures: Mapping[str, Any]) -> str:
    """A line for each side, in seconds."""
    lines = [
        f"{'side':<18}{'step':>8}" + "".join(f"{phase:>12}" for phase in PHASES) + f"{'ours faster':>13}{'core':>7}"
    ]
    for name, seconds in figures["step_s"].items():
        line = f"{name:<18}{seconds:>8.3f}" + "".join(f"{figures['phase_s'][name][phase]:>12.3f}" for phase in PHASES)
        if name in figures["ratio"]:
            line += f"{figures['ratio'][name]:>12.2f}x{figures['core_ratio'][name]:>6.2f}x"
        lines.append(line)
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="that count, of a turn")
    parser.add_argument("--prompts", type=int, default=8, help="of a step")
    parser.add_argument("--group", type=int, default=16, help="answers to a prompt")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer at most")
    parser.add_argument("--taught", type=int, default=150, help="supervised steps before")
    parser.add_argument("--lr-taught", type=float, default=TAUGHT_LR)
    parser.add_argument("--out", type=Path, default=Path("tools/bench/results/dapo_cpu.json"))
    options = parser.parse_args(arguments)
    needs = versions(GRPOTrainer())
    if missing := [package for package, installed in needs.items() if installed is None]:
        print(f"tools.bench.dapo: {', '.join(missing)} not installed: uv pip install -e '.[bench]'", file=sys.stderr)
        raise SystemExit(2)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    before = os.getloadavg()
    with tempfile.TemporaryDirectory() as cache:
        job = make_job(options, Path(cache))
        turns = run(job, {"ours": OurPolicyModule(), "trl.GRPOTrainer": GRPOTrainer()}, options.repeats)
    figures = figures_of(turns) | {"peers": needs, "load_before_and_after": [before[0], os.getloadavg()[0]]}
    settings = vars(options) | {"omp_num_threads": os.environ.get("OMP_NUM_THREADS"), "warm_up": WARM_UP}
    write_result(options.out, "dapo", settings | {"cores": sorted(os.sched_getaffinity(0))}, figures)
    print(table(figures))


if __name__ == "__main__":
    main()
