"""The task of an evaluation job: one committed checkpoint of a run, put to one of the run's own evals."""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import seed_everything

from framework.checkpoint.rank_group import RankGroup
from framework.checkpoint.store import CheckpointStore
from framework.evaluation.suite import Results, headline
from framework.parallel.sharding import unsharded
from framework.recipe.instantiate import instantiate
from framework.recipe.stored import stored
from framework.run.evaluations import Evaluation
from framework.run.folder import RunFolder
from framework.run.layout import CHECKPOINTS, parse_checkpoint
from framework.run.phases import Phase, worker_ledger
from framework.run.worker import SUPERVISOR
from framework.training.build_model import build_model
from framework.training.tasks.train import Train

log = logging.getLogger(__name__)

PATIENCE_S = 1800.0
"""How long ranks wait for each other to load what they decide about."""


@dataclass(frozen=True)
class EvaluateCheckpoint:
    """Examines the checkpoint in folder `checkpoint` (RUN/checkpoints/step-N.attempt-A) by the examination `suite` of
    RUN's own recipe, with the model, the data and the parallel that it gives.

    Results go to RUN/evaluations/step-N/`suite`.json and, as `evaluation/<suite>/<figure>` of step N, to the run's
    Comet experiment. `attempt` is the watcher's try: of several jobs of one try the first evaluates, the others end at
    once, and so does every job when there are results already.
    """

    checkpoint: str
    suite: str
    attempt: int = 1

    def run(self, run: RunFolder) -> dict[str, Any]:
        """Results of the suite; none where another job has them, or is at it. Raises `ValueError` on a folder that is
        no checkpoint's or a suite that the run does not have, `CheckpointError` when the checkpoint does not verify.
        """
        ledger = worker_ledger(run.path, run.attempt)
        ledger.begin(Phase.INIT)
        folder, step = _parts(Path(self.checkpoint))
        composition = stored(folder)
        trained = instantiate(composition)
        if not isinstance(trained, Train) or self.suite not in trained.evals:
            known = ", ".join(trained.evals) if isinstance(trained, Train) else "none, since it trains nothing"
            raise ValueError(f"task.suite: {folder} has no examination {self.suite!r}; it has: {known}")
        trained.parallel.start()
        evaluation = Evaluation(folder, step, self.suite)
        if not RankGroup(PATIENCE_S).on_rank0(lambda: self._mine(evaluation)):
            log.warning("step %d is evaluated by %s already", step, self.suite)
            return {}
        seed_everything(run.seed, verbose=False)
        ledger.begin(Phase.EVALUATE, step)
        results = self._examine(trained, Path(self.checkpoint))
        if trained.parallel.data_rank().rank == 0:
            self._keep(evaluation, results, run, trained, str(composition.config.run.name))
        return dict(results)

    def _mine(self, evaluation: Evaluation) -> bool:
        return evaluation.results() is None and evaluation.claim(self.attempt, _job())

    def _examine(self, trained: Train, checkpoint: Path) -> Results:
        parallel = trained.parallel
        model = build_model(trained.model, trained.data.special_tokens, parallel)
        store = CheckpointStore(checkpoint.parent)
        store.load_weights(store.verified(checkpoint), model)
        model.to(parallel.device)
        with unsharded(model), parallel.as_trained():
            results, _ = trained.evals[self.suite].evaluate(model, trained.data, parallel.data_rank())
        return results

    def _keep(self, evaluation: Evaluation, results: Results, run: RunFolder, trained: Train, name: str) -> None:
        figures = headline(results)
        kept = evaluation.finish(
            {
                "step": evaluation.step,
                "checkpoint": Path(self.checkpoint).name,
                "suite": self.suite,
                "by": run.identity(),
                "figures": figures,
                "results": results,
            }
        )
        if kept and trained.tracking.comet is not None:
            logger = trained.tracking.comet.logger(name, evaluation.run, run.attempt)
            metrics = {f"evaluation/{self.suite}/{figure}": value for figure, value in figures.items()}
            logger.log_metrics(metrics, evaluation.step)
            logger.close()


def _parts(checkpoint: Path) -> tuple[Path, int]:
    """The run's folder and the step."""
    saved = parse_checkpoint(checkpoint)
    if saved is None or checkpoint.parent.name != CHECKPOINTS:
        raise ValueError(f"task.checkpoint: {checkpoint} is no checkpoint; give RUN/checkpoints/step-N.attempt-A")
    return checkpoint.parents[1], saved.step


def _job() -> str:
    """What tells this job from any other, and stays when the scheduler starts it anew."""
    number = os.environ.get("SLURM_JOB_ID")
    if number:
        return f"slurm job {number}"
    process = "a supervisor's" if SUPERVISOR in os.environ else f"process {os.getpid()}"  # it begins a job anew, too
    return f"{process} on {socket.gethostname()}"
