"""The results of a run's evaluations: the file that keeps them, the tables and the report page that show them."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from framework.evaluation.changed_episodes import changed_episodes
from framework.evaluation.compare import stage_changes
from framework.evaluation.examples import Example
from framework.evaluation.headlines import headline_table
from framework.evaluation.report import Change, write_report
from framework.evaluation.results import Results
from framework.evaluation.scene_rows import SceneRow, write_scene_rows
from framework.evaluation.table import results_table
from framework.run.console import show_rows, show_table
from framework.run.files import read_json, write_json
from framework.run.folder import RunFolder, is_first_rank
from framework.run.layout import EVALUATED_FILE, METRICS_FILE, REPORT_FILE, RESULTS_FILE
from framework.training.tasks.curves import run_curves

log = logging.getLogger(__name__)


PLACES = ("cache", "workers")
"""Keys of a recipe that say where and by how many processes scenes are written, which changes no result."""
PROMPTED_BY = ("tasks", "sensors", "cameras", "image_width", "video_frames", "max_length")
"""Keys of the recipe's `data` that decide what a model is asked."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What the results of an evaluation are of."""

    step: int
    """Optimizer steps that the weights have had."""
    checkpoint: str | None
    """The checkpoint that holds them, step-N.attempt-A; None for untrained weights."""
    weights: str
    """The checkpoint's hash, that of its COMMIT; for untrained weights a hash of what they are made from."""
    eval: str | None
    """Hash of the eval in the recipe; None where it is not the run's own."""

    def __str__(self) -> str:
        return f"step {self.step}, {self.checkpoint or 'untrained'}, weights {self.weights[:12]}"


def eval_hash(recipe: Mapping[str, Any], name: str) -> str | None:
    """A hash of what the resolved `recipe` says of its eval `name`; None where it has no such eval."""
    task = recipe["task"]
    if name not in (task.get("evals") or {}):
        return None
    data = task.get("data") or {}
    return digest([_without_places(task["evals"][name]), {key: data.get(key) for key in PROMPTED_BY}])


def digest(value: Any) -> str:
    """The SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _without_places(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_places(each) for name, each in value.items() if name not in PLACES}
    return [_without_places(each) for each in value] if isinstance(value, list) else value


class ResultsFile:
    """Results by stage and evaluator, and the weights that they are of, so that no attempt repeats an evaluation of an
    earlier one, and none shows another model's results.

    Args:
        folder: The run's folder: `results.json` has the results, `evaluated.json` what they are of.
        recipe: The resolved recipe. Results of evals that it describes otherwise now are dropped.
        known: Whether to begin with the results in the folder, instead of none.
    """

    def __init__(self, folder: Path, recipe: Mapping[str, Any], known: bool = True) -> None:
        self.folder = folder
        self.recipe = recipe
        self.by_stage: dict[str, dict[str, Results]] = {}
        self.of: dict[str, dict[str, Evaluated]] = {}
        if known:
            self._read()

    def _read(self) -> None:
        """Take what the files have, without what is of another eval than the recipe's."""
        self.by_stage = read_json(self.folder / RESULTS_FILE) or {}
        for stage, evals in (read_json(self.folder / EVALUATED_FILE) or {}).items():
            for name, entry in evals.items():
                evaluated = Evaluated(**{each.name: entry.get(each.name) for each in fields(Evaluated)})
                if entry.get("results") != digest(self.by_stage.get(stage, {}).get(name)):
                    continue  # a crash came between the two files
                now = eval_hash(self.recipe, name)
                if None not in (now, evaluated.eval) and now != evaluated.eval:
                    log.warning("%s after %s: the eval has changed since; its results are dropped", name, stage)
                    del self.by_stage[stage][name]
                    continue
                self.of.setdefault(stage, {})[name] = evaluated

    def has(self, stage: str, evaluator: str, of: Evaluated) -> bool:
        """Whether the results of `evaluator` after `stage` are known, and are `of` these weights."""
        return self.of.get(stage, {}).get(evaluator) == of

    def start(self, stage: str, weights: str) -> None:
        """Drop what is known of `stage` with other `weights`."""
        results = self.by_stage.get(stage, {})
        for name in list(results):
            if (of := self.of.get(stage, {}).get(name)) is None or of.weights != weights:
                results.pop(name)
                self.of.get(stage, {}).pop(name, None)

    def add(self, stage: str, evaluator: str, of: Evaluated, results: Results, scenes: Sequence[SceneRow] = ()) -> None:
        """Add the results of `evaluator` after `stage`, and what was measured of each scene. The first rank writes the
        files."""
        self.by_stage.setdefault(stage, {})[evaluator] = results
        self.of.setdefault(stage, {})[evaluator] = of
        if is_first_rank():
            write_scene_rows(self.folder, stage, evaluator, asdict(of), scenes)
            self.write()

    def write(self) -> None:
        """Write both files."""
        self.by_stage = {stage: evals for stage, evals in self.by_stage.items() if evals}
        write_json(self.folder / RESULTS_FILE, self.by_stage)
        entries = {
            stage: {name: asdict(of) | {"results": digest(self.by_stage[stage][name])} for name, of in evals.items()}
            for stage, evals in self.of.items()
        }
        write_json(self.folder / EVALUATED_FILE, entries)

    def weights(self) -> dict[str, str]:
        """By stage, what its results are of, for people."""
        return {stage: "; ".join(sorted({str(of) for of in evals.values()})) for stage, evals in self.of.items()}


def report_results(
    run: RunFolder,
    results: ResultsFile,
    examples: Sequence[Example],
    commands: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Print the results as tables, write the report page, and print where to look next: files, then `commands` with
    the run's `{folder}`.

    Without new `examples` a page of the same results stays, because it shows the scenes that an earlier attempt
    evaluated.
    """
    page, of = run.path / REPORT_FILE, {f"results of {stage}": of for stage, of in results.weights().items()}
    shown = digest([results.by_stage, of])[:12]
    if examples or not page.is_file() or shown not in page.read_text(encoding="utf-8", errors="replace"):
        identity, curves = run.identity() | of | {"results": shown}, run_curves(run.path / METRICS_FILE)
        changes = [Change(title, grid) for title, grid in stage_changes(run.path, results.by_stage).items()]
        episodes = changed_episodes(run.path, results.by_stage, examples)
        write_report(page, run.name, identity, results.by_stage, curves, examples, changes, episodes)
    show_table(results_table(results.by_stage))
    show_table(headline_table(run.path, results.by_stage))
    show_rows(of)
    metrics = run.path / METRICS_FILE
    files = {"report": str(page)} | ({"metrics": str(metrics)} if metrics.is_file() else {})
    show_rows(files | {name: command.format(folder=run.path) for name, command in commands.items()})
