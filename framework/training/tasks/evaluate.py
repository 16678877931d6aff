"""The task that evaluates a checkpoint of a run by the run's own evals."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping, Sequence

from lightning.pytorch import seed_everything

from framework.checkpoint.history import Checkpoint
from framework.checkpoint.rank_group import RankGroup
from framework.evaluation.examples import Example
from framework.evaluation.results import Results
from framework.evaluation.scene_rows import SceneRow
from framework.evaluation.suite import headline
from framework.recipe.component import component
from framework.recipe.ranges import Count
from framework.run.evaluations import Evaluation
from framework.run.folder import RunFolder, is_first_rank
from framework.run.phases import Phase, phase_ledger
from framework.run.worker import SUPERVISOR
from framework.tracking.tracking import Tracking
from framework.training.build_model import build_model
from framework.training.evaluators.base import Evaluator, evaluate
from framework.training.tasks.results import Evaluated, ResultsFile, eval_hash, report_results
from framework.training.tasks.trained_run import TrainedRun

log = logging.getLogger(__name__)

PATIENCE_S = 1800.0
"""How long the other ranks wait for the first to claim the evals, in seconds."""


@component
class Evaluate:
    """Evaluates a checkpoint of a run with the model, data, parallelism and evals of the run's own recipe.

    The results are printed as tables and written to `results.json` and `report.html` in this task's own run folder. As
    one of the watcher's jobs (`attempt`), the task also files the results of each eval in the evaluated run, at
    RUN/evaluations/step-N.HASH/EVAL.json and as `evaluation/EVAL/...` of step N in its Comet experiment.

    Args:
        run: The folder of the run to evaluate. Its newest checkpoint that verifies is used.
        checkpoint: The checkpoint's folder, RUN/checkpoints/step-N.attempt-A, instead of `run`.
        evals: Names of the evals to run; None for all.
        added: Further evals by name, for instance a benchmark that is newer than the run.
        attempt: The watcher's number of the try, None outside of the watcher. Several jobs of one try claim each eval,
            and the first to do so runs it. An eval that has results is not repeated.
    """

    def __init__(
        self,
        run: str | None = None,
        checkpoint: str | None = None,
        evals: Sequence[str] | None = None,
        added: Mapping[str, Evaluator] | None = None,
        attempt: Count | None = None,
    ) -> None:
        self.trained = TrainedRun(run, checkpoint)
        self.evals = evals
        self.added = added or {}
        self.attempt = attempt

    def run(self, run: RunFolder) -> dict[str, Results]:
        """The results by eval; empty if other jobs run all of them.

        Raises `ValueError` for an eval that does not exist, `CheckpointError` if the checkpoint does not verify.
        """
        phases = phase_ledger(run.path, run.attempt)
        phases.begin(Phase.INIT)
        name, train = self.trained.recipe()
        evaluators = self._chosen({**train.evals, **self.added})
        train.parallel.start()
        checkpoint = self.trained.checkpoint()
        claimed = RankGroup(PATIENCE_S).on_rank0(lambda: [each for each in evaluators if self._claim(each, checkpoint)])
        for other in [each for each in evaluators if each not in claimed]:
            log.warning("step %d is already evaluated by %s, or another job does it now", checkpoint.step, other)
        if not claimed:
            return {}
        seed_everything(run.seed, verbose=False)
        phases.begin(Phase.EVALUATE, checkpoint.step)
        model = build_model(train.model, train.data.special_tokens, train.parallel)
        self.trained.load_weights(checkpoint, model)
        results: dict[str, Results] = {}
        examples: list[Example] = []
        scenes: dict[str, list[SceneRow]] = {}
        for each in claimed:
            results[each], shown, scenes[each] = evaluate(evaluators[each], model, train.data, train.parallel)
            examples = examples or shown
            if self.attempt is not None and is_first_rank():
                self._file(each, results[each], checkpoint, run, train.tracking, name)
        if is_first_rank():
            self._report(run, results, checkpoint, examples, scenes)
        return results

    def _report(
        self,
        run: RunFolder,
        results: Mapping[str, Results],
        checkpoint: Checkpoint,
        examples: Sequence[Example],
        scenes: Mapping[str, Sequence[SceneRow]],
    ) -> None:
        """Write and print the results in this task's own folder."""
        recipe = self.trained.stored_recipe()
        file = ResultsFile(run.path, recipe, known=False)  # the folder shows the last checkpoint that was evaluated
        stage = f"step {checkpoint.step}"
        for name, each in results.items():
            evaluated = Evaluated(checkpoint.step, checkpoint.folder.name, checkpoint.hash, eval_hash(recipe, name))
            file.add(stage, name, evaluated, each, scenes[name])
        report_results(run, file, examples)

    def _chosen(self, known: Mapping[str, Evaluator]) -> dict[str, Evaluator]:
        names = list(known) if self.evals is None else list(self.evals)
        if unknown := [name for name in names if name not in known]:
            raise ValueError(
                f"task.evals: {self.trained.folder} has no eval {', '.join(unknown)}; there are: "
                f"{', '.join(known) or 'none'}"
            )
        return {name: known[name] for name in names}

    def _claim(self, name: str, checkpoint: Checkpoint) -> bool:
        """Whether this job is the one to run the eval."""
        if self.attempt is None:
            return True
        evaluation = Evaluation(self.trained.folder, checkpoint.step, checkpoint.hash, name)
        return evaluation.results() is None and evaluation.claim(self.attempt, _job())

    def _file(
        self, name: str, results: Results, checkpoint: Checkpoint, run: RunFolder, tracking: Tracking, run_name: str
    ) -> None:
        """File the results in the evaluated run, unless another job did meanwhile."""
        figures = headline(results)
        evaluation = Evaluation(self.trained.folder, checkpoint.step, checkpoint.hash, name)
        filed = evaluation.finish(
            {
                "checkpoint": checkpoint.folder.name,
                "by": run.identity(),
                "figures": figures,
                "results": results,
            }
        )
        if filed and tracking.comet is not None:
            logger = tracking.comet.logger(run_name, evaluation.run, run.attempt)
            metrics = {f"evaluation/{name}/{figure}": value for figure, value in figures.items()}
            logger.log_metrics(metrics, checkpoint.step)
            logger.close()


def _job() -> str:
    """An identifier of this job that no other job has, and that stays when the scheduler restarts it."""
    number = os.environ.get("SLURM_JOB_ID")
    if number:
        return f"slurm job {number}"
    # A supervisor restarts a job too, with other process ids.
    process = "a supervisor's" if SUPERVISOR in os.environ else f"process {os.getpid()}"
    return f"{process} on {socket.gethostname()}"
