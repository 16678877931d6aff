"""Plans in tokens and plans by flow matching, after equal core seconds of supervised training: ADE and minADE of 6.

    OMP_NUM_THREADS=1 python -m tools.bench.action_heads --seeds 0 --core-minutes 7

Both train the demo's two supervised stages, five steps of the first to one of the second. A short run of each tells
what a step costs, and so how many steps the core seconds allow, so that every schedule ends as it should.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.bench.equal_compute import compare, rows_of, steps_s, train
from tools.bench.machine import write_result

VARIANTS: Mapping[str, Sequence[str]] = {"tokens": (), "flow": ("model/action_head=flow",)}
"""What a run adds to the demo; the second is compared with the first."""
MODULE = ("framework.training.sft.module", "SupervisedModule")
EVALS = ("held_out", "zero_shot")
SECTION, MEASURES = "drive", ("ade", "min_ade", "fde", "collision", "off_road")
WORDS = ("recipe=demo", "~curriculum.stages.rl")
EVALUATED = (
    f"evals=[{','.join(EVALS)}]", "evals.held_out.before_training=false",
    *(f"evals.{name}.{key}" for name in EVALS for key in ("tasks={drive: 64}", "plan_samples=5")),
)  # fmt: skip
PROBE, WARM_UP, BROAD = 12, 3, 5
"""Steps of each stage by which a step's cost is judged; those at the start that do not count; steps of the first stage
to one of the second."""


def steps_of(variant: str, core_s: float, folder: Path) -> tuple[int, int]:
    """How many steps of both stages take `core_s`."""
    name = f"{variant}-probe"
    train(MODULE, [*WORDS, *VARIANTS[variant], "evals=[]", f"curriculum.max_steps_per_stage={PROBE}"], folder, name)
    steps = steps_s(folder, name)
    broad, quality = statistics.mean(steps[WARM_UP:PROBE]), statistics.mean(steps[PROBE + WARM_UP :])
    rounds = core_s / (BROAD * broad + quality)
    return round(BROAD * rounds), round(rounds)


def train_variant(variant: str, seed: int, core_s: float, folder: Path) -> dict[str, Any]:
    """Train a variant: core seconds, steps, and rows of scenes by evaluation. Raises `RuntimeError` where it fails."""
    broad, quality = steps_of(variant, core_s, folder)
    name = f"{variant}-{seed}"
    stages = (f"curriculum.stages.broad.steps={broad}", f"curriculum.stages.quality.steps={quality}")
    train(MODULE, [*WORDS, *EVALUATED, *VARIANTS[variant], *stages, f"run.seed={seed}"], folder, name)
    rows = rows_of(folder / "runs" / name, EVALS, "quality")
    return {"core_s": sum(steps_s(folder, name)), "steps": [broad, quality], "rows": rows}


def main() -> None:
    """Measure, and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--core-minutes", type=float, default=7.0, help="of the steps of one run")
    parser.add_argument("--folder", type=Path, help="keeps the runs here")
    parser.add_argument("--out", type=Path, default=Path("tools/bench/results/action_heads.json"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        runs: dict[str, list[dict[str, Any]]] = {variant: [] for variant in VARIANTS}
        for seed in given.seeds:
            for variant in VARIANTS:
                runs[variant].append(train_variant(variant, seed, 60 * given.core_minutes, folder))
                print(variant, seed, runs[variant][-1]["steps"], flush=True)
    settings = {
        "seeds": given.seeds,
        "core_minutes": given.core_minutes,
        "words": WORDS + EVALUATED,
        "variants": dict(VARIANTS),
    }
    write_result(given.out, "action_heads", settings, compare(runs, EVALS, SECTION, MEASURES))


if __name__ == "__main__":
    main()
