"""The task that trains: every stage of a curriculum, examined after each, resumed wherever it was left."""

from __future__ import annotations

import json
import logging
import signal
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from framework.checkpoint.policy import CheckpointPolicy
from framework.checkpoint.store import Checkpoint, CheckpointStore
from framework.data.pipeline import DataPipeline
from framework.evaluation.examples import Example
from framework.evaluation.report import write_report
from framework.evaluation.suite import Results, headline
from framework.evaluation.table import table
from framework.model.language_action import LanguageActionModel
from framework.model.lora import adapter_parameters
from framework.parallel.parallelism import Parallelism
from framework.parallel.sharding import unsharded
from framework.recipe.layers import leaves
from framework.recipe.problem import dotted
from framework.run.files import write_json
from framework.run.folder import RunFolder
from framework.run.layout import CHECKPOINTS, METRICS_FILE, REPORT_FILE, RESULTS_FILE
from framework.run.phases import Phase, worker_ledger
from framework.tracking.metrics_file import read_series
from framework.tracking.phases import Phases
from framework.tracking.tracking import Tracking
from framework.training.build_model import build_model
from framework.training.callbacks.checkpoint import Checkpointing
from framework.training.callbacks.data_stall import DataStall
from framework.training.datamodule import StageData
from framework.training.evaluators.tasks import Evaluator
from framework.training.rl.module import PolicyModule
from framework.training.rl.rollout_pages import RolloutPages
from framework.training.rl.stage import PolicyStage
from framework.training.sft.module import SupervisedModule
from framework.training.stages import Curriculum, StageRange

log = logging.getLogger(__name__)

UNTRAINED = "untrained"


@dataclass(frozen=True)
class Train:
    """Trains `model` through `curriculum` and examines it after every stage.

    `init_from` is another run's folder, whose newest checkpoint's weights training begins with (None: the backbone's
    own); adapters, where it has none, begin anew.
    """

    model: Callable[..., LanguageActionModel]
    data: DataPipeline
    curriculum: Curriculum
    parallel: Parallelism
    checkpoint: CheckpointPolicy
    tracking: Tracking
    evals: Mapping[str, Evaluator]
    init_from: str | None = None

    def run(self, run: RunFolder) -> dict[str, Any]:
        """Train what is left of the curriculum, write the report, print the table; returns the results by stage."""
        worker_ledger(run.path, run.attempt).begin(Phase.INIT)
        seed_everything(run.seed, verbose=False)
        model = build_model(self.model, self.data.special_tokens, self.parallel)
        with self.checkpoint.store(run.path / CHECKPOINTS) as store:
            return self._train(model, store, run)

    def _train(self, model: LanguageActionModel, store: CheckpointStore, run: RunFolder) -> dict[str, Any]:
        newest = store.resume(run.attempt)
        self._describe(run, 0 if newest is None else newest.step)
        if newest is None and self.init_from is not None:
            load_newest(Path(self.init_from), model, new=adapter_parameters(model))
        elif newest is None:
            model.init_weights()
        results = ResultsFile(run.path / RESULTS_FILE)
        if newest is None:
            self._examine(UNTRAINED, 0, model, results, run)
        examples: list[Example] = []
        for span in self.curriculum.stage_ranges():
            if newest is not None and newest.step > span.end:
                continue
            if newest is not None and newest.step == span.end:
                store.load_weights(newest, model)
            else:
                begun = newest if newest is not None and newest.step > span.start else None
                self._fit(span, model, store, run, begun)
            newest = None
            examples = self._examine(span.name, span.end, model, results, run) or examples
        if _is_first():
            report(run, results.by_stage, examples)
        return results.by_stage

    def _fit(
        self,
        span: StageRange,
        model: LanguageActionModel,
        store: CheckpointStore,
        run: RunFolder,
        resume: Checkpoint | None,
    ) -> None:
        answers = isinstance(span.stage, PolicyStage)
        phases = worker_ledger(run.path, run.attempt)
        pipeline = span.stage.pipeline(self.data)
        data = StageData(
            pipeline,
            span.stage.mixture,
            model.processor,
            self.parallel,
            stage=span.name,
            samples=(span.end - span.start) * pipeline.global_batch,
            seed=zlib.crc32(f"{run.seed}/{span.name}".encode()),  # streams of the same name differ between stages
            folder=run.path,
            attempt=run.attempt,
            prompts=answers,
        )
        module = (PolicyModule if answers else SupervisedModule)(model, span, self.parallel)
        shown = span.stage.rollout_page_groups if isinstance(span.stage, PolicyStage) else 0
        with self._loggers(run, span.name) as loggers:
            trainer = Trainer(
                **self.parallel.trainer_arguments(),
                max_steps=span.end,
                max_epochs=-1,
                logger=loggers,
                callbacks=[
                    Phases(phases),
                    DataStall(run.path),
                    *self.tracking.callbacks(run.name, run.attempt, span.name, self.parallel.precision.name, run.path),
                    Checkpointing(store, self.checkpoint, phases, resume),
                    *([RolloutPages(run, self.checkpoint.every, shown)] if shown else []),
                ],
                enable_checkpointing=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
                default_root_dir=run.path,
                profiler=self.tracking.profiler(run.path, run.attempt, span.name),
            )
            try:
                trainer.fit(module, datamodule=data)
            except SIGTERMException as error:  # Lightning's own leaves with code 0, which schedulers take for success
                raise SystemExit(128 + signal.SIGTERM) from error

    @contextmanager
    def _loggers(self, run: RunFolder, stage: str) -> Iterator[list[Logger]]:
        """The loggers of a stage, which upload or archive what they have when it ends, however it does."""
        loggers = self.tracking.loggers(run.name, run.path, run.attempt, stage)
        try:
            yield loggers
        finally:
            for logger in loggers:
                if hasattr(logger, "close"):
                    logger.close()

    def _describe(self, run: RunFolder, step: int) -> None:
        """Tell the loggers that can take it what runs here, and from where on."""
        if not _is_first():
            return
        values = {dotted(key): value for key, value in leaves(run.recipe())}
        with self._loggers(run, "start") as loggers:
            for logger in loggers:
                if hasattr(logger, "describe"):
                    logger.describe(values, run.identity(), step)

    def _examine(
        self, stage: str, step: int, model: LanguageActionModel, results: ResultsFile, run: RunFolder
    ) -> list[Example]:
        """Examine the model after `stage`, unless an attempt did; the scenes of the first examination done now."""
        examples: list[Example] = []
        for name, evaluator in self.evals.items():
            if not results.has(stage, name) and (stage != UNTRAINED or evaluator.before_training):
                log.info("examining %s after %s", name, stage)
                worker_ledger(run.path, run.attempt).begin(Phase.EVALUATE, step)
                model.to(self.parallel.device)
                with unsharded(model), self.parallel.as_trained():
                    found, scenes = evaluator.evaluate(model, self.data, self.parallel.data_rank())
                results.add(stage, name, found)
                figures = {f"{name}/{figure}": value for figure, value in headline(found).items()}
                with self._loggers(run, stage) as loggers:
                    for logger in loggers:
                        logger.log_metrics(figures, step)
                examples = examples or scenes
        return examples


class ResultsFile:
    """Results by stage and examination, kept in `file` so that no attempt repeats what another measured."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.by_stage: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}

    def has(self, stage: str, examination: str) -> bool:
        """Whether `examination` was done after `stage`."""
        return examination in self.by_stage.get(stage, {})

    def add(self, stage: str, examination: str, results: dict[str, Any]) -> None:
        """Keep what `examination` gave after `stage`."""
        self.by_stage.setdefault(stage, {})[examination] = results
        if _is_first():
            write_json(self.file, self.by_stage)


def report(run: RunFolder, stages: Mapping[str, Mapping[str, Results]], examples: Sequence[Example]) -> None:
    """Print the results as tables and where the report page is; write it, unless there is nothing new to show on it."""
    path = run.path / REPORT_FILE
    if examples or not path.is_file():
        curves = {"loss": read_series(run.path / METRICS_FILE, "loss")}
        write_report(path, run.name, run.identity(), stages, curves, examples)
    print(f"\n{table(stages)}\n\nreport: {path}")


def load_newest(run: Path, model: torch.nn.Module, new: Collection[str] = ()) -> Checkpoint:
    """Load the weights of the newest checkpoint of the run in folder `run`; `new` parameters stay as they are where it
    has none of them. Raises `FileNotFoundError` when there is no checkpoint.
    """
    store = CheckpointStore(run / CHECKPOINTS, retention=CheckpointPolicy(every=1).retention)
    checkpoint = store.newest()
    if checkpoint is None:
        raise FileNotFoundError(
            f"{run / CHECKPOINTS}: no committed checkpoint; train that run first, or give another run's folder"
        )
    store.load_weights(checkpoint, model, new)
    return checkpoint


def _is_first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0
