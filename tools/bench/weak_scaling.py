"""Weak scaling: as many rows a rank on 1, 2 and 4 ranks, ours compared with plain FSDP2 in the same run.

    python -m tools.bench.weak_scaling [--ranks 1 2 4 --repeats 5 --steps 12 --rows 4 --length 256 --out ...]

Both sides train the recipes' tiny Qwen3-VL on made-up rows (gloo, float32, AdamW, clipping): plain is a loop over a
model whose blocks were given to `fully_shard`; ours is the whole of `SupervisedModule` on the mesh's strategy. They
take turns in the same processes. Efficiency is a rank's tokens a second over those of one rank alone. Ranks are
processes of one thread: more of them than the machine has cores share cores, which both sides suffer alike; `cores` in
the result says where that begins. What a cluster's network makes of it is in docs/scale.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, Trainer
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from framework.model.param_groups import parameter_groups
from framework.objective.supervised import CrossEntropy, next_token_positions
from framework.parallel.gradients import clip_gradients
from framework.parallel.mesh import Mesh
from framework.parallel.parallelism import Parallelism
from framework.scene.batch import MicroBatch
from framework.training.sft.module import SupervisedModule
from tools.bench.machine import write_result
from tools.bench.replay import ReplayData
from tools.bench.sft import Rows, architecture_of
from tools.bench.sft_sides import SupervisedJob

WARM_UP = 4


def job_of(options: argparse.Namespace) -> SupervisedJob:
    """What both sides train: this rank's own rows."""
    architecture = architecture_of("tiny")
    rows = Rows(options.length, supervised=1.0, images=0)
    generator = torch.Generator().manual_seed(int(os.environ["RANK"]))
    batches = [[rows.batch(architecture, options.rows, generator)] for _ in range(4)]
    return SupervisedJob(architecture, [], batches, options.steps, optimizer="fused")


class Marks(Callback):
    """The clock at the end of every step."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_train_batch_end(self, *_: object) -> None:
        """A step has ended."""
        self.marks.append(time.perf_counter())


def ours(job: SupervisedJob, steps: int) -> list[float]:
    """Our strategy and module, on a mesh that shards over all ranks."""
    parallel = Parallelism("cpu", dist.get_world_size() if dist.is_initialized() else 1, Mesh(1, "auto", 1))
    model, marks = job.build(), Marks()
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        trainer = Trainer(
            **parallel.trainer_arguments(),
            max_steps=steps,
            max_epochs=-1,
            logger=False,
            callbacks=[marks],
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            use_distributed_sampler=False,
            default_root_dir=folder,
        )
        trainer.fit(SupervisedModule(model, job.stage_range, parallel), datamodule=ReplayData(job.batches))
    return marks.marks


def plain(job: SupervisedJob, steps: int) -> list[float]:
    """A loop that does what has to be done and nothing else."""
    model, marks = job.build(), []
    if dist.is_initialized():
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for block in model.blocks():
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        for entry in ("embed", "run_backbone", "head"):
            register_fsdp_forward_method(model, entry)
    model.run_unused_encoders = dist.is_initialized()
    stage = job.stage_range.stage
    optimizer = stage.optimizer(parameter_groups(model, stage.lr, stage.weight_decay, {}))
    objective = CrossEntropy()
    for step in range(steps):
        batch: MicroBatch = job.batches[step % len(job.batches)][0]
        positions, targets = next_token_positions(batch["labels"])
        loss = objective(model(batch, positions), model.head, targets)
        (loss.total / loss.tokens).backward()
        clip_gradients(model.parameters(), stage.clip or 1.0)
        optimizer.step()
        optimizer.zero_grad()
        marks.append(time.perf_counter())
    return marks


def rank(options: argparse.Namespace) -> None:
    """One rank of a world: both sides in turns; the first writes the medians of their steps, turn by turn."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if int(os.environ["WORLD_SIZE"]) > 1:
        dist.init_process_group("gloo")
    job, steps = job_of(options), WARM_UP + options.steps
    turns: dict[str, Callable[[SupervisedJob, int], list[float]]] = {"ours": ours, "plain FSDP2": plain}
    results: dict[str, list[float]] = {name: [] for name in turns}
    for repeat in range(options.repeats):
        for name in list(turns)[:: 1 if repeat % 2 else -1]:
            marks = turns[name](job, steps)[WARM_UP - 1 :]
            results[name].append(statistics.median(b - a for a, b in itertools.pairwise(marks)))
    if os.environ["RANK"] == "0":
        options.steps_of.write_text(json.dumps(results))


def measure(ranks: int, arguments: list[str]) -> dict[str, list[float]]:
    """Seconds of a step of each side, repeat by repeat, in a world of `ranks`."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "steps.json"
        start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
        command = [*start, "-m", "tools.bench.weak_scaling", *arguments, "--steps-of", str(file)]
        subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
        results: dict[str, list[float]] = json.loads(file.read_text())
    print(ranks, {name: f"{1e3 * statistics.median(each):.0f} ms" for name, each in results.items()}, flush=True)
    return results


def main(arguments: list[str] | None = None) -> None:
    """Measure one world after another and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], help="worlds; the first is compared with")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12, help="that count, of a turn")
    parser.add_argument("--rows", type=int, default=4, help="of a rank's step")
    parser.add_argument("--length", type=int, default=256, help="tokens of a row")
    parser.add_argument("--steps-of", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("tools/bench/results/weak_scaling.json"))
    options = parser.parse_args(arguments)
    if options.steps_of is not None:
        rank(options)
        return
    steps = {ranks: measure(ranks, list(arguments or sys.argv[1:])) for ranks in options.ranks}
    step_s = {ranks: {name: statistics.median(each) for name, each in of.items()} for ranks, of in steps.items()}
    alone = step_s[options.ranks[0]]
    figures = {
        "step_ms": {ranks: {name: 1e3 * s for name, s in of.items()} for ranks, of in step_s.items()},
        "efficiency": {ranks: {name: alone[name] / s for name, s in of.items()} for ranks, of in step_s.items()},
        "ours_over_plain": {
            ranks: statistics.median(p / o for o, p in zip(results["ours"], results["plain FSDP2"], strict=True))
            for ranks, results in steps.items()
        },
        "step_s_of_each_repeat": steps,
    }
    del options.steps_of
    write_result(options.out, "weak_scaling", vars(options), figures)


if __name__ == "__main__":
    main()
