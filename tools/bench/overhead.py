"""What Lightning and this framework add to a step: the same model, batches, loss and optimizer, in a plain PyTorch
loop and through the trainer.

    python -m tools.bench.overhead [--repeats 7] [--steps 60] [--rows 1] [--out tools/bench/results/overhead.json]

Both sides take turns in one process; each side's figure is the median over its steps of all repeats, on the clock and
of the process's cores, which others on the machine disturb less. The trainer runs with everything that a run has: the
committed cursor, heartbeat, metrics file, gradient clipping and normalisation over ranks. Reading data is left out of
both.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import Callback, Trainer
from torch.nn.utils import clip_grad_norm_

from framework.checkpoint.policy import CheckpointPolicy
from framework.checkpoint.store import CheckpointStore
from framework.model.param_groups import parameter_groups
from framework.objective.supervised import next_token_positions, supervised_tokens
from framework.recipe.compose import compose
from framework.recipe.instantiate import instantiate
from framework.run.phases import phase_ledger
from framework.scene.batch import MicroBatch
from framework.tracking.phases import PhaseRecorder
from framework.training.callbacks.checkpoint import Checkpointing
from framework.training.sft.module import SupervisedModule
from framework.training.stages import StageRange, SupervisedStage, make_schedule
from framework.training.tasks.train import Train
from tools.bench.machine import write_result
from tools.bench.replay import ReplayData

WARM_UP = 8
"""Steps at the start of each turn that do not count."""


class Seconds(NamedTuple):
    """Of each step that counts."""

    clock: list[float]
    """On the clock."""
    cores: list[float]
    """Of the process's cores."""


class StepClock(Callback):
    """Seconds of every step, from the end of one to the end of the next."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []

    def on_train_batch_end(self, *_: Any) -> None:
        """Mark the end of a step."""
        self.marks.append((time.perf_counter(), time.process_time()))

    def seconds(self) -> Seconds:
        """Of the steps that count."""
        marks = list(zip(self.marks[WARM_UP:-1], self.marks[WARM_UP + 1 :], strict=True))
        return Seconds(*([after[kind] - before[kind] for before, after in marks] for kind in (0, 1)))


def plain_steps(model: Any, stage_range: StageRange, batches: list[list[MicroBatch]], steps: int) -> Seconds:
    """Seconds of each step of a plain loop."""
    stage = stage_range.stage
    assert isinstance(stage, SupervisedStage)
    optimizer = stage.optimizer(parameter_groups(model, stage.lr, stage.weight_decay, stage.lr_factors))
    schedule = make_schedule(stage_range, optimizer)
    clock = StepClock()
    for step in range(steps):
        batch = batches[step % len(batches)]
        tokens = sum(supervised_tokens(micro["labels"]) for micro in batch)
        for micro in batch:
            positions, targets = next_token_positions(micro["labels"])
            (stage.objective(model(micro, positions), model.head, targets).total / tokens).backward()
        clip_grad_norm_(model.parameters(), stage.clip)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        clock.on_train_batch_end()
    return clock.seconds()


def framework_steps(
    task: Train, model: Any, stage_range: StageRange, batches: list[list[MicroBatch]], steps: int
) -> Seconds:
    """Seconds of each step through the trainer, with all that watches a run."""
    clock = StepClock()
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        store = CheckpointStore(Path(folder), CheckpointPolicy(every=1).retention)
        never, phases = CheckpointPolicy(every=10**9), phase_ledger(Path(folder), 1)
        watching = [PhaseRecorder(phases), *task.tracking.callbacks("bench", 1, stage_range.name)]
        trainer = Trainer(
            **task.parallel.trainer_arguments(),
            max_steps=steps,
            max_epochs=-1,
            logger=task.tracking.loggers("bench", Path(folder), 1, stage_range.name),
            callbacks=[*watching, Checkpointing(store, never, phases, None), clock],
            enable_checkpointing=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=folder,
        )
        trainer.fit(SupervisedModule(model, stage_range), datamodule=ReplayData(batches))
    return clock.seconds()


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rows", type=int, default=1, help="samples of a step: what makes a step take about 50 ms")
    parser.add_argument("--out", type=Path, default=Path("tools/bench/results/overhead.json"))
    options = parser.parse_args()

    batch = [f"data.global_batch={options.rows}", f"data.micro_batch={options.rows}", "data.workers=0"]
    task: Train = instantiate(compose(["recipe=demo", "scale=tiny", *batch]))
    model = task.model(special_tokens=task.data.special_tokens)
    first = next(task.curriculum.stage_ranges())
    stage_range = StageRange(first.name, first.stage, 0, 10**6)
    with tempfile.TemporaryDirectory() as folder:
        where: dict[str, Any] = {"stage": stage_range.name, "samples": 10**6, "seed": 0, "folder": Path(folder)}
        loader = task.data.loader(stage_range.stage.mixture, model.processor, **where)
        batches = [batch for batch, _ in zip(loader, range(8), strict=False)]

    before, turns = os.getloadavg()[0], list[tuple[Seconds, Seconds]]()
    for _ in range(options.repeats):
        a = plain_steps(model, stage_range, batches, options.steps)
        b = framework_steps(task, model, stage_range, batches, options.steps)
        turns.append((a, b))
    figures: dict[str, Any] = {}
    for kind, name in ((0, ""), (1, "core_")):
        ratios = [statistics.median(ours[kind]) / statistics.median(plain[kind]) for plain, ours in turns]
        figures |= {
            f"plain_step_{name}ms": 1e3 * statistics.median(s for plain, _ in turns for s in plain[kind]),
            f"framework_step_{name}ms": 1e3 * statistics.median(s for _, ours in turns for s in ours[kind]),
            f"{name}ratio": statistics.median(ratios),
            f"{name}ratio_of_each_repeat": ratios,
        }
    figures |= {"bar": 1.02, "load_before_and_after": [before, os.getloadavg()[0]]}
    write_result(options.out, "overhead", vars(options), figures)


if __name__ == "__main__":
    main()
