"""The sides of the DAPO benchmark: ours through Lightning, and trl's `GRPOTrainer` with its `generate` engine.

Both begin with the same weights and answer the same prompts in the same order, in equally large groups and at most
equally many tokens, with the same optimizer, rate, clipping, loss, bans and rewards. Answers are free text: `generate`
knows no grammar, and so ours is given none. Each side reads its prompts its own way: ours from the shards, trl from a
data set of pictures that were decoded and scaled down before.
"""

from __future__ import annotations

import functools
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.profilers import Profiler
from torch import Tensor

from framework.data.feed import StageRun
from framework.data.loader import Prompts, Sample, StepLoader
from framework.data.tasks import Drive
from framework.model.assembly import LanguageActionModel
from framework.model.grammar import BANNED_TOKENS
from framework.model.param_groups import parameter_groups
from framework.rollout.rewards.rollouts import roll_out
from framework.training.curriculum import Span, make_schedule
from framework.training.policy_module import PolicyModule
from framework.training.policy_stage import PolicyStage
from framework.training.stage_data import StageData
from framework.training.train import Train

PHASES = ("prompts", "generation", "reward", "log-probs", "update")
"""Reading and rendering; sampling; carrying out and judging; the pass that the loss needs; gradients and optimizer."""


class FreeDrive(Drive):
    """Driving whose answers are held to no form."""

    def __init__(self, drive: Drive) -> None:
        super().__init__(drive.codec, drive.reason)
        self.grammar = None


@dataclass
class Clock:
    """Seconds of each step, on the clock (`wall`) and of the process's core (`core`), and those of its phases."""

    warm_up: int
    steps: list[dict[str, tuple[float, float]]] = field(default_factory=list)
    phases: dict[str, tuple[float, float]] = field(default_factory=dict)
    begun: tuple[float, float] | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What happens meanwhile belongs to phase `name`."""
        before = _now()
        yield
        self.add(name, _since(before))

    def add(self, name: str, took: tuple[float, float]) -> None:
        """Phase `name` took so long; a negative time takes back what a phase within it took."""
        wall, core = self.phases.get(name, (0.0, 0.0))
        self.phases[name] = (wall + took[0], core + took[1])

    def mark(self) -> None:
        """A step has ended; the first mark is where the first step begins."""
        if self.begun is not None:
            self.steps.append({**self.phases, "step": _since(self.begun)})
        self.phases = {}
        self.begun = _now()

    def counted(self, name: str, kind: int) -> list[float]:
        """Seconds of `name` in each step that counts; `kind` 0 on the clock, 1 of the core."""
        return [step.get(name, (0.0, 0.0))[kind] for step in self.steps[self.warm_up :]]


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _since(before: tuple[float, float]) -> tuple[float, float]:
    now = _now()
    return now[0] - before[0], now[1] - before[1]


@dataclass(frozen=True)
class Turn:
    """What a side's turn gave: its clock, and of all its answers the mean length (tokens), reward and share that spells
    a plan.
    """

    clock: Clock
    length: float
    reward: float
    parsed: float


@dataclass(frozen=True)
class Job:
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

    def run(self, folder: Path) -> StageRun:
        """The stage as a run has it: it sets the order of the prompts."""
        return StageRun("rl", 10**6, self.seed, folder)

    @property
    def span(self) -> Span:
        """The stage's steps; one more than are taken, since a checkpoint is saved at the end."""
        return Span("rl", self.stage, 0, self.steps + 1)


def judge(
    stage: PolicyStage, drive: Drive, prompts: Sequence[Sample], texts: Sequence[str], tokens: Sequence[int]
) -> Any:
    """Rewards and rollouts of answers, one prompt for each."""
    rollouts = roll_out(
        stage.simulator,
        [prompt.scene for prompt in prompts],
        texts,
        [drive.thought(text) for text in texts],
        tokens,
        [drive.decode(text, prompt.scene) for text, prompt in zip(texts, prompts, strict=True)],
    )
    return stage.rewards(rollouts), rollouts


class Side(Protocol):
    """One of the sides."""

    def train(self, job: Job, warm_up: int) -> Turn:
        """A turn, from nothing."""
        ...


# Ours


NAMED = {"forward": "log-probs", "backward": "update", "optimizer": "update"}
"""The phases of the parts that the module names."""


class _Phases(Profiler):
    """Tells the clock of the parts that the module names."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.begun: dict[str, tuple[float, float]] = {}

    def start(self, action_name: str) -> None:
        """A part begins."""
        if action_name in NAMED:
            self.begun[action_name] = _now()

    def stop(self, action_name: str) -> None:
        """A part has ended."""
        if action_name in NAMED:
            self.clock.add(NAMED[action_name], _since(self.begun.pop(action_name)))


class _Watch(Callback):
    """Tells the clock of the steps, and what is within the rollout."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.metrics: list[Mapping[str, float]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Before the first step: name the parts of sampling."""
        if self.clock.begun is None:
            collector = pl_module.collector
            collector.shares = _each(collector.shares, lambda: self.clock.phase("prompts"))
            collector.engine.generate = _timed(self.clock, "generation", collector.engine.generate)
            collector._judged = _timed(self.clock, "reward", collector._judged)
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


def _timed(clock: Clock, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def timed(*given: Any, **named: Any) -> Any:
        with clock.phase(name):
            return call(*given, **named)

    return timed


class Ours:
    """`PolicyModule` under Lightning, reading its prompts from shards."""

    def train(self, job: Job, warm_up: int) -> Turn:
        """See `Side`."""
        clock = Clock(warm_up)
        watch, model = _Watch(clock), job.build()
        with tempfile.TemporaryDirectory() as folder:
            data = StageData(
                job.task.data,
                job.stage.mixture,
                model.processor,
                job.run(Path(folder)),
                job.task.placement,
                prompts=True,
            )
            trainer = Trainer(
                **job.task.placement.trainer_arguments(),
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
            trainer.fit(PolicyModule(model, job.span, job.task.placement), datamodule=data)
        counted = watch.metrics[warm_up:]
        mean = {
            name: sum(m[name] for m in counted) / len(counted)
            for name in ("answers/length", "reward/mean", "answers/unparsed")
        }
        return Turn(clock, mean["answers/length"], mean["reward/mean"], 1 - mean["answers/unparsed"])


# trl


@dataclass(frozen=True)
class Question:
    """A prompt as trl takes it, beside ours: chat messages and pictures."""

    sample: Sample
    messages: list[dict[str, str]]
    images: list[Any]


def questions(job: Job, processor: Any, count: int) -> list[Question]:
    """The first `count` prompts of the stage, in its order."""
    with tempfile.TemporaryDirectory() as folder:
        loader = job.task.data.loader(job.stage.mixture, processor, job.run(Path(folder)), writes=False, cut=Prompts())
        samples = list(itertools.islice(itertools.chain.from_iterable(loader), count))
        found = [_question(loader, sample) for sample in samples]
        loader.close()
    return found


def _question(loader: StepLoader, sample: Sample) -> Question:
    renderer = loader.dataset.renderer
    scene, task, draw = loader.mixture.read(sample.address)
    exchange = loader.mixture.tasks[task].conversation(scene, draw)
    images = [renderer._look(scene, camera).images[0] for camera in renderer._chosen(scene)]
    content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": exchange.prompt}]
    told = renderer.processor.apply_chat_template(
        [[{"role": "user", "content": content}]], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    if list(told["input_ids"][0]) != sample.rendered.input_ids.tolist():
        raise RuntimeError(f"scene {scene.id}: the processor's prompt is not ours")
    return Question(sample, [{"role": "user", "content": exchange.prompt}], images)


class GRPOTrainer:
    """trl's `GRPOTrainer` with `loss_type="dapo"`."""

    packages: Sequence[str] = ("trl", "accelerate", "datasets")

    def train(self, job: Job, warm_up: int) -> Turn:
        """See `Side`."""
        from datasets import Dataset
        from transformers import TrainerCallback
        from trl import GRPOConfig
        from trl import GRPOTrainer as Base

        clock, model, stage = Clock(warm_up), job.build(), job.stage
        processor, prompts = model.processor, job.task.data.global_batch
        asked = questions(job, processor, job.steps * prompts)
        judged: list[tuple[float, float, float]] = []

        class Timed(Base):
            def _tokenize_prompts(self, *given: Any, **named: Any) -> Any:
                with clock.phase("prompts"):
                    return super()._tokenize_prompts(*given, **named)

            def _generate_single_turn(self, *given: Any, **named: Any) -> Any:
                with clock.phase("generation"):
                    return super()._generate_single_turn(*given, **named)

            def _calculate_rewards(self, *given: Any, **named: Any) -> Any:
                with clock.phase("reward"):
                    return super()._calculate_rewards(*given, **named)

            def _prepare_inputs(self, *given: Any, **named: Any) -> Any:
                before = _now()
                found = super()._prepare_inputs(*given, **named)
                clock.add("update", tuple(-took for took in _since(before)))  # it is within the training step
                return found

            def compute_loss(self, *given: Any, **named: Any) -> Any:
                before = _now()
                found = super().compute_loss(*given, **named)
                took = _since(before)
                clock.add("log-probs", took)
                clock.add("update", (-took[0], -took[1]))
                return found

            def training_step(self, *given: Any, **named: Any) -> Any:
                with clock.phase("update"):
                    return super().training_step(*given, **named)

        class Mark(TrainerCallback):
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                if clock.begun is None:
                    clock.mark()

            def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
                self.before = _now()

            def on_optimizer_step(self, *_: Any, **__: Any) -> None:
                clock.add("update", _since(self.before))

            def on_step_end(self, *_: Any, **__: Any) -> None:
                clock.mark()

        def reward(item: list[int], completion_ids: list[list[int]], **_: Any) -> list[float]:
            end = processor.tokenizer.eos_token_id
            said = [ids[:-1] if ids and ids[-1] == end else ids for ids in completion_ids]
            texts = [processor.tokenizer.decode(ids, skip_special_tokens=False) for ids in said]
            samples = [asked[number].sample for number in item]
            drive = job.task.data.tasks["drive"]
            rewards, rollouts = judge(stage, drive, samples, texts, [len(ids) for ids in completion_ids])
            parsed = rollouts.parsed.double()
            lengths = torch.tensor([len(ids) for ids in completion_ids], dtype=torch.float64)
            judged.append((float(lengths.mean()), float(rewards.total.mean()), float(parsed.mean())))
            return rewards.total.tolist()

        objective = stage.objective
        rows = {
            "prompt": [question.messages for question in asked],
            "images": [question.images for question in asked],
            "item": list(range(len(asked))),
        }
        with tempfile.TemporaryDirectory() as folder:
            options = GRPOConfig(
                output_dir=folder,
                max_steps=job.steps,
                per_device_train_batch_size=prompts * stage.group_size,
                num_generations=stage.group_size,
                max_completion_length=stage.max_new_tokens,
                temperature=objective.temperature,
                generation_kwargs={"suppress_tokens": banned(processor.tokenizer, model.vocabulary)},
                loss_type="dapo",
                epsilon=objective.loss.low,
                epsilon_high=objective.loss.high,
                delta=objective.loss.dual,
                beta=0.0,
                max_grad_norm=stage.clip,
                shuffle_dataset=False,
                gradient_checkpointing=False,
                use_cpu=True,
                bf16=False,
                dataloader_pin_memory=False,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                logging_steps=1,
            )
            optimizer = stage.optimizer(parameter_groups(model.backbone, stage.lr, stage.weight_decay, {}))
            trainer = Timed(
                model=model.backbone,
                reward_funcs=reward,
                args=options,
                train_dataset=Dataset.from_dict(rows),
                processing_class=processor,
                optimizers=(optimizer, make_schedule(job.span, optimizer)),
                callbacks=[Mark()],
            )
            trainer.train()
        means = [sum(values) / len(values) for values in zip(*judged[warm_up:], strict=True)]
        return Turn(clock, *means)


def banned(tokenizer: Any, vocabulary: int) -> list[int]:
    """The ids that our sampler never says, spare rows included."""
    ids: list[int] = tokenizer.convert_tokens_to_ids(list(BANNED_TOKENS))
    return [*ids, *range(len(tokenizer), vocabulary)]
