"""The results of a run's evaluations: the file that keeps them, the tables and the report page that show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from framework.evaluation.examples import Example
from framework.evaluation.report import write_report
from framework.evaluation.suite import Results
from framework.evaluation.table import results_table
from framework.run.console import show_rows, show_table
from framework.run.files import read_json, write_json
from framework.run.folder import RunFolder, is_first_rank
from framework.run.layout import METRICS_FILE, REPORT_FILE
from framework.tracking.metrics_file import read_series


class ResultsFile:
    """Results by stage and evaluator, kept in `file`, so that no attempt repeats an earlier attempt's evaluation."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.by_stage: dict[str, dict[str, Results]] = read_json(file) or {}

    def has(self, stage: str, evaluator: str) -> bool:
        """Whether the results of `evaluator` after `stage` are known."""
        return evaluator in self.by_stage.get(stage, {})

    def add(self, stage: str, evaluator: str, results: Results) -> None:
        """Add the results of `evaluator` after `stage`. The first rank writes the file."""
        self.by_stage.setdefault(stage, {})[evaluator] = results
        if is_first_rank():
            write_json(self.file, self.by_stage)


def report_results(
    run: RunFolder,
    stages: Mapping[str, Mapping[str, Results]],
    examples: Sequence[Example],
    commands: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Print the results as tables, write the report page, and print where to look next: files, then `commands` with
    the run's `{folder}`.

    Without new `examples` an existing page stays, because it shows the scenes that an earlier attempt evaluated.
    """
    page = run.path / REPORT_FILE
    if examples or not page.is_file():
        curves = {"loss": read_series(run.path / METRICS_FILE, "loss")}
        write_report(page, run.name, run.identity(), stages, curves, examples)
    show_table(results_table(stages))
    metrics = run.path / METRICS_FILE
    files = {"report": str(page)} | ({"metrics": str(metrics)} if metrics.is_file() else {})
    show_rows(files | {name: command.format(folder=run.path) for name, command in commands.items()})
