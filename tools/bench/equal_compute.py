"""Runs that train for equal core seconds, and their differences scene by scene, over seeds."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from framework.evaluation.intervals import bootstrap, shifted
from framework.run.files import read_records

STOPPED = 143
"""What a run that got SIGTERM ends with."""
DRIVER = """\
import importlib, json, os, signal, sys, time
from framework.__main__ import main
place, kind, budget, file = sys.argv[1:5]
module, spent = getattr(importlib.import_module(place), kind), []
step = module.training_step
def counted(*arguments, **options):
    start = time.process_time()
    result = step(*arguments, **options)
    spent.append(time.process_time() - start)
    with open(file, "w") as stream:
        json.dump(spent, stream)
    if sum(spent) >= float(budget):
        os.kill(os.getpid(), signal.SIGTERM)
    return result
module.training_step = counted
sys.exit(main(sys.argv[5:]))
"""
"""Runs a recipe, until its steps have taken some core seconds; writes how many each step took."""

Rows = list[dict[str, Any]]
"""What an evaluation measured of each scene (`framework.evaluation.scene_rows`)."""


def train(module: tuple[str, str], words: Sequence[str], folder: Path, name: str, core_s: float = float("inf")) -> None:
    """Train a recipe as the run `name` of `folder`, which gets SIGTERM once its steps have taken `core_s`. What is
    finished is not done again. Raises `RuntimeError` where it fails.

    Args:
        module: Where the stage's Lightning module is, and its name.
    """
    spent, cut = folder / f"{name}.spent", folder / f"{name}.spent.new"
    if not spent.is_file():
        command = [sys.executable, "-c", DRIVER, *module, str(core_s), str(cut), *words, *_words(folder, name)]
        _run(command, folder, name, STOPPED if core_s < float("inf") else 0)
        cut.replace(spent)


def steps_s(folder: Path, name: str) -> list[float]:
    """The core seconds of each step of a run that was trained."""
    return [float(step) for step in json.loads((folder / f"{name}.spent").read_text())]


def evaluate(folder: Path, name: str) -> Path:
    """Evaluate the newest checkpoint of the run `name`, by its own evals, unless that is done. Returns the folder with
    the results. Raises `RuntimeError` where it fails.
    """
    evaluated = f"{name}-evaluated"
    if not (folder / "runs" / evaluated / "results.json").is_file():
        words = ["recipe=evaluate", f"task.run={folder}/runs/{name}", *_words(folder, evaluated)]
        _run([sys.executable, "-m", "framework", *words], folder, evaluated, 0)
    return folder / "runs" / evaluated


def _words(folder: Path, name: str) -> list[str]:
    return [f"paths.runs={folder}/runs", f"paths.cache={folder}/cache", f"run.name={name}"]


def _run(command: Sequence[str], folder: Path, name: str, code: int) -> None:
    """Raises `RuntimeError` where it does not end with `code`."""
    log = folder / f"{name}.log"
    with log.open("w") as stream:
        ended = subprocess.run(command, stdout=stream, stderr=stream, check=False).returncode
    if ended != code:
        raise RuntimeError(f"{name} ended with {ended}:\n{log.read_text()[-3000:]}")


def rows_of(run: Path, evals: Iterable[str], stage: str = "*") -> dict[str, Rows]:
    """The rows of a run's scenes, by evaluation."""
    found = {}
    for name in evals:
        (file,) = (run / "scenes").glob(f"{stage}.{name}.jsonl")
        found[name] = read_records(file)[1:]
    return found


def compare(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], evals: Sequence[str], section: str, measures: Sequence[str]
) -> dict[str, Any]:
    """The figures of each variant over seeds, and its differences from the first.

    Args:
        runs: By variant, of each seed: `core_s`, `steps`, and by evaluation the `rows` of scenes.
        evals: The evaluations.
        section: The rows' section that has the measures.
        measures: What is compared.
    """
    first, found = next(iter(runs.values())), dict[str, Any]()
    for variant, seeds in runs.items():
        told: dict[str, Any] = {key: [seed[key] for seed in seeds] for key in ("core_s", "steps")}
        for name in evals:
            old, new = ([seed["rows"][name] for seed in each] for each in (first, seeds))
            told[name] = {measure: over_seeds(new, section, measure) for measure in measures}
            if found:
                told[name]["difference"] = {each: difference(old, new, section, each) for each in measures}
        found[variant] = told
    return found


def mean(rows: Rows, section: str, measure: str) -> float:
    """Over scenes."""
    return statistics.mean(row[section][measure] for row in rows)


def over_seeds(seeds: Sequence[Rows], section: str, measure: str) -> dict[str, Any]:
    """The mean over seeds, its standard deviation where there are several, and each."""
    means = [mean(rows, section, measure) for rows in seeds]
    deviation = statistics.stdev(means) if len(means) > 1 else None
    return {"mean": statistics.mean(means), "deviation_over_seeds": deviation, "of_each_seed": means}


def difference(before: Sequence[Rows], after: Sequence[Rows], section: str, measure: str) -> dict[str, Any]:
    """Of means over seeds, scene by scene; the interval is over scenes. Raises `ValueError` for other scenes."""
    old, new = (_by_scene(seeds, section, measure) for seeds in (before, after))
    if old.keys() != new.keys():
        raise ValueError("the variants were evaluated on other scenes; run them again in one folder")
    changes = {scene: new[scene] - old[scene] for scene in old}
    change = statistics.mean(changes.values())
    interval = shifted(bootstrap(changes, dict.fromkeys(changes, 1.0)), change)
    return {"mean": change, "interval_95_over_scenes": interval}


def _by_scene(seeds: Iterable[Rows], section: str, measure: str) -> dict[str, float]:
    values = defaultdict[str, list[float]](list)
    for rows in seeds:
        for row in rows:
            values[row["scene"]].append(row[section][measure])
    return {scene: statistics.mean(each) for scene, each in values.items()}
