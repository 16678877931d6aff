"""The task that examines a checkpoint of another run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import seed_everything

from framework.data.pipeline import DataPipeline
from framework.evaluation.examples import Example
from framework.evaluation.suite import Results
from framework.model.language_action import LanguageActionModel
from framework.parallel.parallelism import Parallelism
from framework.run.files import write_json
from framework.run.folder import RunFolder
from framework.run.layout import RESULTS_FILE
from framework.run.phases import Phase, worker_ledger
from framework.training.evaluators.tasks import Evaluator
from framework.training.tasks.train import load_newest, report


@dataclass(frozen=True)
class Evaluate:
    """Examines the newest checkpoint of the run in folder `checkpoint_of` and writes results and report into its own
    run's folder.
    """

    model: Callable[..., LanguageActionModel]
    data: DataPipeline
    parallel: Parallelism
    evals: Mapping[str, Evaluator]
    checkpoint_of: str

    def run(self, run: RunFolder) -> dict[str, Any]:
        """Results by examination."""
        worker_ledger(run.path, run.attempt).begin(Phase.INIT)
        seed_everything(run.seed, verbose=False)
        model = self.model(special_tokens=self.data.special_tokens, initialize=False)
        model.materialize(self.parallel.device)
        checkpoint = load_newest(Path(self.checkpoint_of), model)
        stage, examples = f"step {checkpoint.step}", list[Example]()
        results: dict[str, Results] = {}
        worker_ledger(run.path, run.attempt).begin(Phase.EVALUATE, checkpoint.step)
        for name, examination in self.evals.items():
            with self.parallel.as_trained():
                results[name], scenes = examination.evaluate(model, self.data, self.parallel.data_rank())
            examples = examples or scenes
        write_json(run.path / RESULTS_FILE, {stage: results})
        report(run, {stage: results}, examples)
        return results
