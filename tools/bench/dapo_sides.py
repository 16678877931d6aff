"""The sides of the DAPO benchmark: ours through Lightning, and trl's `GRPOTrainer` with its `generate` engine.

Both begin with the same weights and answer the same prompts in the same order, in equally large groups and at most
equally many tokens, with the same optimizer, rate, clipping, loss, bans and rewards. Answers are free text: `generate`
knows no grammar, and so ours is given none. Each side reads its prompts its own way: ours from the shards, trl from a
data set of pictures that were decoded and scaled down before.
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.profilers import Profiler
from torch import Tensor

from framework.data.render.tasks import Drive
from framework.model.language_action import LanguageActionModel
from framework.training.datamodule import StageData
from framework.training.rl.module import PolicyModule
from framework.training.rl.stage import PolicyStage
from framework.training.stages import StageRange
from framework.training.tasks.train import Train

PHASES = ("prompts", "generation", "reward", "log-probs", "update")
"""Reading and rendering; sampling; carrying out and judging; the pass that the loss needs; gradients and optimizer."""


class FreeDrive(Drive):
    """Driving whose answers are held to no form."""

    def __init__(self, drive: Drive) -> None:
        super().__init__(drive.codec, drive.reason)
        self.grammar = None


@dataclass
class PhaseClock:
    """Seconds of each step, on the clock (`wall`) and of the process's core (`core`), and those of its phases."""

    warm_up: int
    steps: list[dict[str, tuple[float, float]]] = field(default_factory=list)
    phases: dict[str, tuple[float, float]] = field(default_factory=dict)
    started: tuple[float, float] | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What happens meanwhile belongs to phase `name`."""
        before = now()
        yield
        self.add(name, since(before))

    def add(self, name: str, took: tuple[float, float]) -> None:
        """Phase `name` took so long; a negative time takes back what a phase within it took."""
        wall, core = self.phases.get(name, (0.0, 0.0))
        self.phases[name] = (wall + took[0], core + took[1])

    def mark(self) -> None:
        """A step has ended; the first mark is where the first step begins."""
        if self.started is not None:
            self.steps.append({**self.phases, "step": since(self.started)})
        self.phases = {}
        self.started = now()

    def counted(self, name: str, kind: int) -> list[float]:
        """Seconds of `name` in each step that counts; `kind` 0 on the clock, 1 of the core."""
        return [step.get(name, (0.0, 0.0))[kind] for step in self.steps[self.warm_up :]]


def now() -> tuple[float, float]:
    """Seconds on the clock, and of this process's core."""
    return time.perf_counter(), time.process_time()


def since(before: tuple[float, float]) -> tuple[float, float]:
    """What has passed of both."""
    ended = now()
    return ended[0] - before[0], ended[1] - before[1]


@dataclass(frozen=True)
class PolicyTurn:
    """What a side's turn gave: its clock, and of all its answers the mean length (tokens), reward and share that spells
    a plan. `times` are the mean seconds of the phases that a side times itself, by metric name.
    """

    clock: PhaseClock
    length: float
    reward: float
    parsed: float
    times: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PolicyJob:
    """What both sides do: `steps` steps of the recipe's `task` (its only stage, without grammar), of which the first
    `warm_up` do not count, from `weights`.
    """

    task: Train
    stage: PolicyStage
    weights: Mapping[str, Tensor]
    steps: int
    warm_up: int
    seed: int = 0

    def build(self) -> LanguageActionModel:
        """A model of the weights."""
        model = self.task.model(special_tokens=self.task.data.special_tokens)
        model.load_state_dict(self.weights)
        return model.train()

    def order(self, folder: Path) -> dict[str, Any]:
        """The arguments of a loader that set the order of the prompts."""
        return {"stage": "rl", "samples": 10**6, "seed": self.seed, "folder": folder}

    @property
    def stage_range(self) -> StageRange:
        """The stage's steps; one more than are taken, since a checkpoint is saved at the end."""
        return StageRange("rl", self.stage, 0, self.steps + 1)


class PolicySide(Protocol):
    """One of the sides."""

    def train(self, job: PolicyJob, warm_up: int) -> PolicyTurn:
        """A turn, from nothing."""
        ...


# Ours


NAMED = {"forward": "log-probs", "backward": "update", "optimizer": "update"}
"""The phases of the parts that the module names."""


class _Phases(Profiler):
    """Tells the clock of the parts that the module names."""

    def __init__(self, clock: PhaseClock) -> None:
        super().__init__()
        self.clock = clock
        self.started: dict[str, tuple[float, float]] = {}

    def start(self, action_name: str) -> None:
        """A part begins."""
        if action_name in NAMED:
            self.started[action_name] = now()

    def stop(self, action_name: str) -> None:
        """A part has ended."""
        if action_name in NAMED:
            self.clock.add(NAMED[action_name], since(self.started.pop(action_name)))


class _Watch(Callback):
    """Tells the clock of the steps, and what is within the rollout."""

    def __init__(self, clock: PhaseClock) -> None:
        self.clock = clock
        self.metrics: list[Mapping[str, float]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Before the first step: name the parts of sampling."""
        if self.clock.started is None:
            collector = pl_module.collector
            collector.loader_steps = _each(collector.loader_steps, lambda: self.clock.phase("prompts"))
            collector.engine.generate = _timed(self.clock, "generation", collector.engine.generate)
            collector.metrics.timed = _judging(self.clock, collector.metrics.timed)
            self.clock.mark()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """A step has ended."""
        self.metrics.append(outputs["metrics"])
        self.clock.mark()


def _each(items: Iterator[Any], phase: Callable[[], Any]) -> Iterator[Any]:
    while True:
        with phase():
            item = next(items)
        yield item


def _timed(clock: PhaseClock, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def timed(*given: Any, **named: Any) -> Any:
        with clock.phase(name):
            return call(*given, **named)

    return timed


def _judging(clock: PhaseClock, timed: Callable[[str], Any]) -> Callable[[str], Any]:
    @contextmanager
    def also_timed(name: str) -> Iterator[None]:
        with timed(name), clock.phase("reward") if name == "judge" else nullcontext():
            yield

    return also_timed


class OurPolicyModule:
    """`PolicyModule` under Lightning, reading its prompts from shards."""

    def train(self, job: PolicyJob, warm_up: int) -> PolicyTurn:
        """See `PolicySide`."""
        clock = PhaseClock(warm_up)
        watch, model = _Watch(clock), job.build()
        with tempfile.TemporaryDirectory() as folder:
            data = StageData(
                job.task.data,
                job.stage.mixture,
                model.processor,
                job.task.parallel,
                **job.order(Path(folder)),
                prompts=True,
            )
            trainer = Trainer(
                **job.task.parallel.trainer_arguments(),
                max_steps=job.steps,
                max_epochs=-1,
                logger=False,
                callbacks=[watch],
                enable_checkpointing=False,
                enable_model_summary=False,
                enable_progress_bar=False,
                use_distributed_sampler=False,
                default_root_dir=folder,
                profiler=_Phases(clock),
            )
            trainer.fit(PolicyModule(model, job.stage_range, job.task.parallel), datamodule=data)
        counted = watch.metrics[warm_up:]
        mean = {
            name: sum(m[name] for m in counted) / len(counted)
            for name in ("answers/length", "reward/mean", "answers/unparsed")
        }
        timed = [name for name in counted[0] if name.startswith("time/")]
        times = {name: sum(metrics[name] for metrics in counted) / len(counted) for name in timed}
        parsed = 1 - mean["answers/unparsed"]
        return PolicyTurn(clock, mean["answers/length"], mean["reward/mean"], parsed, times)
