"""Variants of reinforcement learning at equal compute: driving after equal core seconds of training.

    OMP_NUM_THREADS=1 python -m tools.bench.rl_variants outputs/runs/demo --seeds 0 1 2 --core-minutes 7

All begin with the newest weights of a supervised run and take steps of 8 groups of 8 answers, or episodes. A run gets
SIGTERM once its steps, which sample, simulate and train, have taken the core seconds; its checkpoint is then evaluated
on held-out hard scenes: one plan a scene, and in closed loop. With `--folder`, what is finished is not done again.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from framework.evaluation.results import SIMULATION
from tools.bench import equal_compute
from tools.bench.equal_compute import evaluate, mean, rows_of, steps_s, train
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
    f"evals.closed_loop.scenes={SCENES}",
    f"sources.world_hard_held_out.scenes={SCENES}", f"curriculum.max_steps_per_stage={MOST_STEPS}",
    "stage.warmup_share=0.003",
)  # fmt: skip
MODULE = ("framework.training.rl.module", "PolicyModule")


def train_variant(
    variant: str, seed: int, weights: Path, core_s: float, folder: Path, untrained: bool
) -> dict[str, Any]:
    """Train a variant and evaluate it: core seconds, steps, and rows of scenes by evaluation. Raises `RuntimeError`
    where it fails.

    Args:
        untrained: Whether the weights that it begins with are evaluated, too.
    """
    name = f"{variant}-{seed}"
    first = [f"evals.{each}.before_training={str(untrained).lower()}" for each in EVALS]
    words = [*VARIANTS[variant], *WORDS, *first, f"init_from={weights}", f"run.seed={seed}"]
    train(MODULE, words, folder, name, core_s)
    steps = steps_s(folder, name)
    found = {"core_s": sum(steps), "steps": len(steps), "rows": rows_of(evaluate(folder, name), EVALS)}
    return found | ({"untrained": rows_of(folder / "runs" / name, EVALS, "untrained")} if untrained else {})


def compare(runs: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> dict[str, Any]:
    """The figures of each variant over seeds, and its differences from the first.

    Args:
        runs: By variant and seed what `train_variant` returned.
    """
    start = next(iter(next(iter(runs.values())).values()))["untrained"]
    untrained = {name: {each: mean(rows, SIMULATION, each) for each in MEASURES} for name, rows in start.items()}
    by_variant = {variant: list(by_seed.values()) for variant, by_seed in runs.items()}
    return {"untrained": untrained, **equal_compute.compare(by_variant, EVALS, SIMULATION, MEASURES)}


def measure(
    weights: Path, seeds: Sequence[int], core_s: float, variants: Sequence[str], folder: Path
) -> dict[str, Any]:
    """Train all variants with each seed, seed by seed, and compare them."""
    runs: dict[str, dict[int, dict[str, Any]]] = {variant: {} for variant in variants}
    for seed in seeds:
        for variant in variants:
            untrained = (variant, seed) == (variants[0], seeds[0])
            runs[variant][seed] = train_variant(variant, seed, weights, core_s, folder, untrained)
            print(variant, seed, f"{runs[variant][seed]['steps']} steps", flush=True)
    return compare(runs)


def main() -> None:
    """Measure, and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="a supervised run's folder")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--core-minutes", type=float, default=7.0, help="of the steps of one run")
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
