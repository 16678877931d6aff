"""Variants of reinforcement learning at equal compute: driving after equal core seconds of training.

    OMP_NUM_THREADS=1 python -m tools.bench.rl_variants outputs/runs/demo --seeds 0 1 2 --core-minutes 6

All begin with the newest weights of a supervised run and take steps of 8 groups of 8 answers, or episodes. A run gets
SIGTERM once its steps, which sample, simulate and train, have taken the core seconds; its checkpoint is then evaluated
on held-out hard scenes: one plan a scene, and in closed loop. With `--folder`, what is finished is not done again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from framework.evaluation.intervals import bootstrap, shifted
from framework.evaluation.results import SIMULATION
from tools.bench.machine import write_result

VARIANTS = {
    "single": ("recipe=rl_dapo",),
    "closed_loop": ("recipe=rl_dapo_closed_loop",),
    "all_groups": ("recipe=rl_dapo", "stage/filter=none"),
}
"""The recipes, by name; the others are compared with the first."""
EVALS = ("simulated_hard", "closed_loop")
MEASURES = ("collision", "at_fault_collision", "off_road", "progress", "comfortable", "planning_score")
SCENES = 96
"""Held-out scenes of both evaluations."""
MOST_STEPS = 1000
"""No run gets as far as this."""
WORDS = (
    "scale=tiny", "stage.global_batch=8", "curriculum.stages.rl.group_size=8", f"evals=[{','.join(EVALS)}]",
    "evals.simulated_hard.before_training=false", f"evals.closed_loop.scenes={SCENES}",
    f"sources.world_hard_held_out.scenes={SCENES}", f"curriculum.max_steps_per_stage={MOST_STEPS}",
    "stage.warmup_share=0.003",
)  # fmt: skip
DRIVER = """\
import os, signal, sys, time
import framework.training.rl.module as module
from framework.__main__ import main
step, budget, spent = module.PolicyModule.training_step, float(sys.argv[1]), []
def counted(*arguments, **options):
    start = time.process_time()
    result = step(*arguments, **options)
    spent.append(time.process_time() - start)
    if sum(spent) >= budget:
        with open(sys.argv[2], "w") as file:
            print(sum(spent), len(spent), file=file)
        os.kill(os.getpid(), signal.SIGTERM)
    return result
module.PolicyModule.training_step = counted
sys.exit(main(sys.argv[3:]))
"""
"""Runs a recipe until its steps have taken some core seconds; writes how many they took, and how many steps."""

Rows = list[dict[str, Any]]
"""What an evaluation measured of each scene (`framework.evaluation.scene_rows`)."""


def train(variant: str, seed: int, weights: Path, core_s: float, folder: Path, untrained: bool) -> dict[str, Any]:
    """Train a variant and evaluate it: core seconds, steps, and rows of scenes by evaluation. Raises `RuntimeError`
    where it fails.

    Args:
        untrained: Whether the weights that it begins with are evaluated, too.
    """
    name = f"{variant}-{seed}"
    spent = folder / f"{name}.spent"
    paths = [f"paths.runs={folder}/runs", f"paths.cache={folder}/cache"]
    if not spent.is_file():
        first = [f"evals.{each}.before_training={str(untrained).lower()}" for each in EVALS]
        words = [*VARIANTS[variant], *WORDS, *paths, *first, f"init_from={weights}", f"run.seed={seed}"]
        cut = Path(f"{spent}.new")
        _run([sys.executable, "-c", DRIVER, str(core_s), str(cut), *words, f"run.name={name}"], folder, name, 143)
        cut.replace(spent)
    evaluated = f"{name}-evaluated"
    if not (folder / "runs" / evaluated / "results.json").is_file():
        words = ["recipe=evaluate", f"task.run={folder}/runs/{name}", *paths, f"run.name={evaluated}"]
        _run([sys.executable, "-m", "framework", *words], folder, evaluated, 0)
    seconds, steps = spent.read_text().split()
    found = {"core_s": float(seconds), "steps": int(steps), "rows": rows_of(folder / "runs" / evaluated)}
    return found | ({"untrained": rows_of(folder / "runs" / name, "untrained")} if untrained else {})


def rows_of(run: Path, stage: str = "*") -> dict[str, Rows]:
    """The rows of a run's scenes, by evaluation."""
    found = {}
    for name in EVALS:
        (file,) = (run / "scenes").glob(f"{stage}.{name}.jsonl")
        found[name] = [json.loads(line) for line in file.read_text().splitlines()[1:]]
    return found


def _run(command: Sequence[str], folder: Path, name: str, code: int) -> None:
    """Raises `RuntimeError` where it does not end with `code`."""
    log = folder / f"{name}.log"
    with log.open("w") as stream:
        ended = subprocess.run(command, stdout=stream, stderr=stream, check=False).returncode
    if ended != code:
        raise RuntimeError(f"{name} ended with {ended}:\n{log.read_text()[-3000:]}")


def compare(runs: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> dict[str, Any]:
    """The figures of each variant over seeds, and its differences from the first.

    Args:
        runs: By variant and seed what `train` returned.
    """
    first = next(iter(runs.values()))
    start: dict[str, dict[str, Rows]] = next(iter(first.values()))["untrained"]
    found: dict[str, Any] = {"untrained": {name: {measure: _mean(start[name], measure) for measure in MEASURES}
                                           for name in EVALS}}  # fmt: skip
    for variant, seeds in runs.items():
        told: dict[str, Any] = {key: [seed[key] for seed in seeds.values()] for key in ("core_s", "steps")}
        for name in EVALS:
            told[name] = {measure: _over_seeds([seed["rows"][name] for seed in seeds.values()], measure)
                          for measure in MEASURES}  # fmt: skip
            if seeds is not first:
                told[name]["difference"] = {measure: _difference(first, seeds, name, measure) for measure in MEASURES}
        found[variant] = told
    return found


def _mean(rows: Rows, measure: str) -> float:
    return statistics.mean(row[SIMULATION][measure] for row in rows)


def _over_seeds(seeds: Sequence[Rows], measure: str) -> dict[str, Any]:
    means = [_mean(rows, measure) for rows in seeds]
    deviation = statistics.stdev(means) if len(means) > 1 else None
    return {"mean": statistics.mean(means), "deviation_over_seeds": deviation, "of_each_seed": means}


def _difference(
    old: Mapping[int, Mapping[str, Any]], new: Mapping[int, Mapping[str, Any]], name: str, measure: str
) -> dict[str, Any]:
    """Of the means over seeds, scene by scene; the interval is over scenes."""
    before, after = ({row["scene"]: [] for row in next(iter(each.values()))["rows"][name]} for each in (old, new))
    for told, runs in ((before, old), (after, new)):
        for run in runs.values():
            for row in run["rows"][name]:
                told[row["scene"]].append(row[SIMULATION][measure])
    if before.keys() != after.keys():
        raise ValueError(f"{name}: the variants were evaluated on other scenes; run them again in one folder")
    differences = {scene: statistics.mean(after[scene]) - statistics.mean(before[scene]) for scene in before}
    mean = statistics.mean(differences.values())
    interval = shifted(bootstrap(differences, dict.fromkeys(differences, 1.0)), mean)
    return {"mean": mean, "interval_95_over_scenes": interval}


def measure(
    weights: Path, seeds: Sequence[int], core_s: float, variants: Sequence[str], folder: Path
) -> dict[str, Any]:
    """Train all variants with each seed, seed by seed, and compare them."""
    runs: dict[str, dict[int, dict[str, Any]]] = {variant: {} for variant in variants}
    for seed in seeds:
        for variant in variants:
            untrained = (variant, seed) == (variants[0], seeds[0])
            runs[variant][seed] = train(variant, seed, weights, core_s, folder, untrained)
            print(variant, seed, f"{runs[variant][seed]['steps']} steps", flush=True)
    return compare(runs)


def main() -> None:
    """Measure, and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="a supervised run's folder")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--core-minutes", type=float, default=6.0, help="of the steps of one run")
    parser.add_argument("--folder", type=Path, help="keeps the runs here")
    parser.add_argument("--out", type=Path, default=Path("tools/bench/results/rl_variants.json"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        figures = measure(given.weights.resolve(), given.seeds, 60 * given.core_minutes, given.variants, folder)
    settings = {key: value for key, value in vars(given).items() if key not in ("weights", "folder", "out")}
    settings |= {"weights": given.weights.name, "recipes": dict(VARIANTS), "words": WORDS}
    write_result(given.out, "rl_variants", settings, figures)


if __name__ == "__main__":
    main()
