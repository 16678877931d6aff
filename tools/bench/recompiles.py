"""Recompilations over a recipe's own mixture: trains the same steps plain and with compiled blocks, and counts graphs.

    OMP_NUM_THREADS=1 python -m tools.bench.recompiles [--recipe demo --steps 200 --backend aot_eager --out ...]

Every step has other samples, and so other lengths, images and sensors. The figure is the number of graphs that are
compiled after the first step of the compiled run, and the largest difference between the losses of a step. `aot_eager`
captures the graphs that Inductor would compile and runs them as they are: it needs no compiler.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from framework.model.param_groups import parameter_groups
from framework.parallel.compilation import Compilation
from framework.parallel.gradients import clip_gradients
from framework.recipe.compose import compose
from framework.recipe.instantiate import instantiate
from framework.scene.batch import MicroBatch
from framework.training.sft.prepare import prepare_step
from framework.training.stages import SupervisedStage
from framework.training.tasks.train import Train
from tools.bench.machine import write_result


def batches_of(task: Train, steps: int) -> list[list[MicroBatch]]:
    """The first steps of the first stage."""
    stage_range = next(task.curriculum.stage_ranges())
    processor = task.model(special_tokens=task.data.special_tokens).processor
    with tempfile.TemporaryDirectory() as folder:
        where: dict[str, Any] = {"stage": stage_range.name, "samples": 10**6, "seed": 0, "folder": Path(folder)}
        loader = task.data.loader(stage_range.stage.mixture, processor, **where)
        return [batch for batch, _ in zip(loader, range(steps), strict=False)]


def train(
    task: Train, batches: Sequence[Sequence[MicroBatch]], compilation: Compilation
) -> tuple[list[float], list[int]]:
    """The mean loss of each step, and the number of graphs compiled up to it."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    torch.manual_seed(0)
    stage = next(task.curriculum.stage_ranges()).stage
    assert isinstance(stage, SupervisedStage)
    model = task.model(special_tokens=task.data.special_tokens)
    compilation.apply(model, model.blocks())
    optimizer = stage.optimizer(parameter_groups(model, stage.lr, stage.weight_decay, stage.lr_factors))
    losses, graphs = [], []
    for batch in batches:
        step, total = prepare_step(model, batch, missing=0), 0.0
        for micro in step.micro_batches:
            loss = stage.objective(model(micro.batch, micro.sources), model.head, micro.targets)
            (loss.total / step.counts[0]).backward()
            total += float(loss.total) / step.counts[0]
        clip_gradients(model.parameters(), stage.clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
        graphs.append(int(torch._dynamo.utils.counters["stats"]["unique_graphs"]))
    return losses, graphs


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rows", type=int, default=4, help="samples of a step, one micro-batch")
    parser.add_argument("--backend", default="aot_eager")
    parser.add_argument("--out", type=Path, default=Path("tools/bench/results/recompiles_cpu.json"))
    options = parser.parse_args(arguments)
    rows = [f"data.global_batch={options.rows}", f"data.micro_batch={options.rows}", "data.workers=0"]
    task = instantiate(compose([f"recipe={options.recipe}", "scale=tiny", *rows]))
    assert isinstance(task, Train)
    batches = batches_of(task, options.steps)
    plain, _ = train(task, batches, Compilation())
    compiled, graphs = train(task, batches, Compilation("blocks", options.backend))
    figures = {
        "graphs": graphs[-1],
        "graphs_of_the_first_step": graphs[0],
        "graphs_after_the_first_step": graphs[-1] - graphs[0],
        "steps_that_compiled": [step for step in range(1, len(graphs)) if graphs[step] > graphs[step - 1]],
        "bar": 8,
        "largest_difference_of_losses": max(abs(ours - theirs) for ours, theirs in zip(compiled, plain, strict=True)),
        "losses": {"first": plain[0], "last": plain[-1], "last_compiled": compiled[-1]},
        "lengths": len({micro["attention_mask"].sum().item() for batch in batches for micro in batch}),
    }
    write_result(options.out, "recompiles", vars(options), figures)


if __name__ == "__main__":
    main()
