"""The training task: runs the stages of a curriculum, evaluates after each, and resumes an interrupted run."""

from __future__ import annotations

import logging
import signal
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from framework.checkpoint.policy import CheckpointPolicy
from framework.checkpoint.store import Checkpoint, CheckpointStore
from framework.data.pipeline import DataPipeline
from framework.evaluation.examples import Example
from framework.evaluation.results import Results
from framework.evaluation.suite import headline
from framework.model.language_action import LanguageActionModel
from framework.model.weights import added_parameters
from framework.parallel.parallelism import Parallelism
from framework.recipe.component import component
from framework.recipe.layers import leaves
from framework.recipe.problem import dotted
from framework.run.folder import RunFolder, is_first_rank
from framework.run.layout import CHECKPOINTS, COMPILED
from framework.run.phases import Phase, phase_ledger
from framework.run.trial import report_metrics
from framework.tracking.phases import PhaseRecorder
from framework.tracking.tracking import Tracking
from framework.training.build_model import build_model
from framework.training.callbacks.checkpoint import Checkpointing
from framework.training.callbacks.data_stall import DataStall
from framework.training.datamodule import StageData
from framework.training.evaluators.base import Evaluator, dry_run, evaluate
from framework.training.evaluators.closed_loop import ClosedLoopEvaluator
from framework.training.evaluators.loss import LossEvaluator
from framework.training.evaluators.open_loop import OpenLoopEvaluator
from framework.training.evaluators.tasks import TaskEvaluator
from framework.training.rl.module import PolicyModule
from framework.training.rl.rollout_pages import RolloutPages
from framework.training.rl.stage import PolicyStage, check_action_head, check_sampler
from framework.training.sft.module import SupervisedModule
from framework.training.stages import Curriculum, StageRange, stage_to_resume
from framework.training.tasks.header import show_header
from framework.training.tasks.newest_weights import load_newest
from framework.training.tasks.results import Evaluated, ResultsFile, digest, eval_hash, report_results

log = logging.getLogger(__name__)

NEXT = {"evaluate": "python -m framework recipe=evaluate task.run={folder}",
        "export": "python -m framework recipe=export task.run={folder}"}  # fmt: skip
"""What can be done with a trained run, shown at its end."""
UNTRAINED = "untrained"
"""The stage name in `results.json` of evaluations before training."""


@component
@dataclass(frozen=True)
class Train:
    """Trains a model through a curriculum and evaluates it after every stage.

    An interrupted run continues from its newest valid checkpoint, in the stage that the checkpoint belongs to.
    Evaluations that an earlier attempt finished are not repeated.

    Raises `ValueError` for a task that the data does not have, for a batch that does not divide over the data's
    `canonical_nodes`, and for a stage in which nothing trains.
    """

    model: Callable[..., LanguageActionModel]
    """Builds the model, called with `special_tokens` and `initialize`."""
    data: DataPipeline
    """Renders, batches and collates samples."""
    curriculum: Curriculum
    """The stages, in order."""
    parallel: Parallelism
    """Devices, mesh, precision and recomputation."""
    checkpoint: CheckpointPolicy
    """When checkpoints are saved and which are kept."""
    tracking: Tracking
    """Loggers, heartbeat and metrics."""
    evals: Mapping[str, Evaluator]
    """Evaluators by name, run after every stage."""
    init_from: str | None = None
    """Folder of another run, whose newest checkpoint initializes the weights; None keeps the backbone's pretrained
    ones. Adapters and an action head that the checkpoint lacks are newly initialized.
    """

    def __post_init__(self) -> None:
        for name, stage in self.curriculum.stages.items():
            batch = self.data.global_batch if stage.global_batch is None else stage.global_batch
            if batch % self.data.canonical_nodes:
                raise ValueError(
                    f"curriculum.stages.{name}: its steps of {batch} samples do not divide over "
                    f"data.canonical_nodes: {self.data.canonical_nodes}; give a multiple"
                )
            for stream, part in stage.mixture.parts.items():
                where = f"curriculum.stages.{name}.mixture.parts.{stream}.tasks"
                _check_tasks(where, list(part.tasks), list(self.data.tasks))
        # `check` follows these statements before a job is queued; the dry run in `run` needs scenes.
        for name, stage in self.curriculum.stages.items():
            if isinstance(stage, PolicyStage):
                check_sampler(stage, f"curriculum.stages.{name}")
        head = self.model.keywords.get("action_head")  # type: ignore[attr-defined]  # a recipe's model is a partial
        if head is not None:
            _check_tasks("model.action_head.tasks", list(head.keywords.get("tasks", ())), list(self.data.tasks))
            if self.parallel.mesh.tensor not in ("auto", 1):
                raise ValueError(
                    "parallel.mesh.tensor: tensor parallelism does not cut the action head; set it to 1, or train "
                    "without one (model/action_head=none)"
                )
            for name, stage in self.curriculum.stages.items():
                if isinstance(stage, PolicyStage):
                    check_action_head(stage, f"curriculum.stages.{name}", head.keywords)
        kernels = self.model.keywords.get("kernels")  # type: ignore[attr-defined]
        if kernels is not None and kernels.needs_gpu and self.parallel.accelerator == "cpu":
            raise ValueError(
                "model.kernels: Liger's kernels need a GPU, and parallel.accelerator is cpu; choose "
                "model/kernels=eager or fused_loss"
            )
        if kernels is not None and self.parallel.mesh.tensor not in ("auto", 1):
            raise ValueError(
                "parallel.mesh.tensor: kernels of libraries take whole tensors; set it to 1, or choose "
                "model/kernels=eager"
            )
        if head is None and self.model.keywords.get("adapters") is None:  # type: ignore[attr-defined]
            for name, stage in self.curriculum.stages.items():
                if not [each for each in stage.trainable if each and each[0] != "!"]:  # what `check` can follow
                    raise ValueError(
                        f"curriculum.stages.{name}.trainable: selects nothing to train, and the model has neither "
                        "adapters nor an action head; give a pattern of parameters, such as '*'"
                    )
        for name, evaluator in self.evals.items():
            if isinstance(evaluator, TaskEvaluator):
                _check_tasks(f"evals.{name}.tasks", list(evaluator.tasks), list(self.data.tasks))
            if isinstance(evaluator, OpenLoopEvaluator | ClosedLoopEvaluator | LossEvaluator):
                _check_tasks(f"evals.{name}.task", [evaluator.task], list(self.data.tasks))

    def run(self, run: RunFolder) -> dict[str, dict[str, Results]]:
        """Train the rest of the curriculum, then print the tables and write the report.

        Returns the results by stage and evaluator.
        """
        phase_ledger(run.path, run.attempt).begin(Phase.INIT)
        seed_everything(run.seed, verbose=False)
        self.parallel.compilation.keep_in(run.path / COMPILED)
        model = build_model(self.model, self.data.special_tokens, self.parallel)
        results, examples = ResultsFile(run.path, run.recipe()), list[Example]()
        with self.checkpoint.store(run.path / CHECKPOINTS) as store:
            newest = store.resume(run.attempt)
            dry_run(self.evals, self.data, model.processor)
            self._describe(run, 0 if newest is None else newest.step)
            stages = list(self.curriculum.stage_ranges())
            show_header(model, self.parallel, stages, list(self.evals), run.path, 0 if newest is None else newest.step)
            if newest is None:
                made_from = self._initialize(model)
                recipe = run.recipe()
                weights = digest([recipe["task"]["model"], recipe["run"]["seed"], made_from])
                self._evaluate(UNTRAINED, Evaluated(0, None, weights, None), model, results, run)
            else:
                stages = stages[stages.index(_stage_of(newest, stages)) :]
            for stage_range in stages:
                if newest is not None and newest.step == stage_range.end:
                    saved = newest
                    store.load_weights(saved, model)
                else:
                    self._fit(stage_range, model, store, run, newest)
                    saved = store.last()
                newest = None
                of = Evaluated(saved.step, saved.folder.name, saved.hash, None)
                examples = self._evaluate(stage_range.name, of, model, results, run) or examples
            if is_first_rank():
                results.write()
                report_results(run, results, examples, NEXT)
        return results.by_stage

    def _initialize(self, model: LanguageActionModel) -> str | None:
        """Load or initialize the weights that training starts from. Returns the hash of the checkpoint that they come
        from; None for the backbone's own.
        """
        if self.init_from is None:
            model.init_weights()
            return None
        return load_newest(Path(self.init_from), model, new=added_parameters(model)).hash

    def _fit(
        self,
        stage_range: StageRange,
        model: LanguageActionModel,
        store: CheckpointStore,
        run: RunFolder,
        resume: Checkpoint | None,
    ) -> None:
        """Train one stage, from the checkpoint `resume` in its middle, or from its first step where that is None."""
        stage, name = stage_range.stage, stage_range.name
        is_rl = isinstance(stage, PolicyStage)
        pipeline = stage.pipeline(self.data)
        data = StageData(
            pipeline,
            stage.mixture,
            model.processor,
            self.parallel,
            stage=name,
            samples=(stage_range.end - stage_range.start) * pipeline.global_batch,
            seed=zlib.crc32(f"{run.seed}/{name}".encode()),  # stages shuffle the same stream differently
            folder=run.path,
            attempt=run.attempt,
            prompts=is_rl,
        )
        module = (PolicyModule if is_rl else SupervisedModule)(model, stage_range, self.parallel)
        groups_shown = stage.rollout_page_groups if isinstance(stage, PolicyStage) else 0
        ledger, precision = phase_ledger(run.path, run.attempt), self.parallel.precision.name
        with self._loggers(run, name) as loggers:
            trainer = Trainer(
                **self.parallel.trainer_arguments(),
                max_steps=stage_range.end,
                max_epochs=-1,
                logger=loggers,
                callbacks=[
                    PhaseRecorder(ledger),
                    DataStall(run.path),
                    *self.tracking.callbacks(run.name, run.attempt, name, precision, run.path, stage_range.start),
                    Checkpointing(store, self.checkpoint, ledger, resume),
                    *([RolloutPages(run, self.checkpoint.every, groups_shown)] if groups_shown else []),
                ],
                enable_checkpointing=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
                default_root_dir=run.path,
                profiler=self.tracking.profiler(run.path, run.attempt, name),
            )
            try:
                trainer.fit(module, datamodule=data)
            except SIGTERMException as error:
                # Lightning would exit with code 0, which schedulers take for success.
                raise SystemExit(128 + signal.SIGTERM) from error

    def _evaluate(
        self, stage: str, weights: Evaluated, model: LanguageActionModel, results: ResultsFile, run: RunFolder
    ) -> list[Example]:
        """Run the evaluators after `stage`, except those that an earlier attempt has run on the same `weights`. Report
        their metrics to the hyperparameter search that started the run, if any.

        Returns the examples of the first evaluator that ran.
        """
        examples: list[Example] = []
        step = weights.step
        results.start(stage, weights.weights)
        for name, evaluator in self.evals.items():
            if stage == UNTRAINED and not evaluator.before_training:
                continue
            of = replace(weights, eval=eval_hash(results.recipe, name))
            if results.has(stage, name, of):
                report_metrics(named_metrics(name, results.by_stage[stage][name]), step)
                continue
            log.info("evaluating %s %s", name, "before training" if stage == UNTRAINED else f"after {stage}")
            phase_ledger(run.path, run.attempt).begin(Phase.EVALUATE, step)
            result, shown, scenes = evaluate(evaluator, model, self.data, self.parallel)
            results.add(stage, name, of, result, scenes)
            metrics = named_metrics(name, result)
            with self._loggers(run, stage) as loggers:
                for logger in loggers:
                    logger.log_metrics(metrics, step)
            report_metrics(metrics, step)
            examples = examples or shown
        return examples

    def _describe(self, run: RunFolder, step: int) -> None:
        """Log the run's recipe and identity, with the step at which this attempt starts."""
        if not is_first_rank():
            return
        values = {dotted(key): value for key, value in leaves(run.recipe())}
        with self._loggers(run, "start") as loggers:
            for logger in loggers:
                if hasattr(logger, "describe"):
                    logger.describe(values, run.identity(), step)

    @contextmanager
    def _loggers(self, run: RunFolder, stage: str) -> Iterator[list[Logger]]:
        """The loggers of a stage, closed on exit, also after an error: closing uploads or archives what they hold."""
        loggers = self.tracking.loggers(run.name, run.path, run.attempt, stage)
        try:
            yield loggers
        finally:
            for logger in loggers:
                if hasattr(logger, "close"):
                    logger.close()


def _stage_of(checkpoint: Checkpoint, ranges: Sequence[StageRange]) -> StageRange:
    """The stage that `checkpoint` belongs to. Raises `ValueError` where the recipe has it elsewhere now."""
    state = checkpoint.state()
    return stage_to_resume(ranges, state["stage"], checkpoint.step, state.get("stage_start"))


def named_metrics(name: str, results: Results) -> dict[str, float]:
    """The headline metrics of the evaluator `name`: {"held_out/drive/ade": 1.2, ...}."""
    return {f"{name}/{metric}": value for metric, value in headline(results).items()}


def _check_tasks(where: str, names: Sequence[str], known: Sequence[str]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"{where}: {unknown} are no tasks of the data; there are {sorted(known)}")
