"""What a step of DAPO costs at several commits: core seconds of `recipe=rl_dapo scale=tiny`, the first commit being 1.

    OMP_NUM_THREADS=1 python -m tools.bench.dapo_commits d80d50f 403d454 HEAD [--pairs 5 --out ...]

d80d50f is the last commit at which the simulator compared bodies at its samples alone, 403d454 the first that finds
collisions between them. Each commit trains in a process of its own over its own checkout, and they take turns step by
step: a pair compares neighbours in time, by core seconds, since other programs may share the machine. All do the same
work: four groups of 16 answers, by random weights; the grammar makes every answer a plan of the same length, and no
group is drawn again (`stage/filter=none`).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.bench.machine import write_result

BAR = 1.05
WARM_UP = 1
"""Steps at the start that do not count: memory is taken."""
WORDS = (
    "recipe=rl_dapo", "scale=tiny", "init_from=null", "stage/filter=none", "evals=[]", "run.name=timed",
    "stage.global_batch=4", "data.micro_batch=4", "sources.world_hard.scenes=16",
)  # fmt: skip
DRIVER = """\
import os, sys, time
turns, seconds = os.fdopen(int(sys.argv[1])), os.fdopen(int(sys.argv[2]), "w", buffering=1)
import framework.training.rl.module as module
from framework.__main__ import main
step = module.PolicyModule.training_step
def timed(*arguments, **options):
    print("ready", file=seconds)
    turns.readline()
    start = time.process_time()
    result = step(*arguments, **options)
    print(time.process_time() - start, file=seconds)
    return result
module.PolicyModule.training_step = timed
sys.exit(main(sys.argv[3:]))
"""
"""Runs a recipe, each step when it is told to, and tells its core seconds; with names that all commits have."""


class Side:
    """A run at one commit, which waits before each step.

    Args:
        checkout: The commit's files.
        folder: For what the run writes.
        steps: How many it will train.

    `begin` and `step` raise `RuntimeError` where the run has ended.
    """

    def __init__(self, checkout: Path, folder: Path, steps: int) -> None:
        theirs, turns = os.pipe()
        seconds, told = os.pipe()
        words = [*WORDS, f"stage.steps={steps}", f"paths.runs={folder}/runs", f"paths.cache={folder}/cache"]
        folder.mkdir()
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", DRIVER, str(theirs), str(told), *words],
                cwd=checkout,
                env=os.environ | {"PYTHONPATH": str(checkout)},
                stdout=log,
                stderr=log,
                pass_fds=(theirs, told),
            )
        os.close(theirs)
        os.close(told)
        self.turns, self.seconds = os.fdopen(turns, "w", buffering=1), os.fdopen(seconds)

    def begin(self) -> None:
        """Wait until it is ready for a step."""
        if self.seconds.readline() != "ready\n":
            raise RuntimeError(f"the run has ended:\n{self.log.read_text()[-3000:]}")

    def step(self) -> float:
        """Let it train one step; returns the core seconds."""
        print("go", file=self.turns)
        line = self.seconds.readline()
        if not line:
            raise RuntimeError(f"the run has ended:\n{self.log.read_text()[-3000:]}")
        return float(line)


def measure(commits: Sequence[str], pairs: int) -> dict[str, list[float]]:
    """The counted steps of each commit."""
    seconds: dict[str, list[float]] = {commit: [] for commit in commits}
    sides: dict[str, Side] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for commit in commits:
                checkout = Path(folder, commit)
                subprocess.run(["git", "worktree", "add", "--quiet", "--detach", checkout, commit], check=True)
                sides[commit] = Side(checkout, Path(folder, f"{commit}.run"), WARM_UP + pairs)
                sides[commit].begin()
            for number in range(WARM_UP + pairs):
                first = number % len(commits)
                for commit in [*commits[first:], *commits[:first]]:
                    if number:
                        sides[commit].begin()
                    seconds[commit].append(sides[commit].step())
                    print(commit, round(seconds[commit][-1], 2), flush=True)
        finally:
            for commit in commits:
                if commit in sides:
                    sides[commit].process.kill()
                    sides[commit].process.wait()
                subprocess.run(["git", "worktree", "remove", "--force", f"{folder}/{commit}"], check=False)
    return {commit: each[WARM_UP:] for commit, each in seconds.items()}


def figures_of(seconds: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Medians, every step, and the cost over the first commit's."""
    base, *others = seconds
    ratios = {
        commit: [after / before for before, after in zip(seconds[base], seconds[commit], strict=True)]
        for commit in others
    }
    return {
        "step_core_s": {commit: statistics.median(each) for commit, each in seconds.items()},
        "step_core_s_of_each": dict(seconds),
        "cost": {commit: statistics.median(each) for commit, each in ratios.items()},
        "cost_of_each_pair": ratios,
        "bar": BAR,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commits", nargs="+", help="the first is what the others are compared with")
    parser.add_argument("--pairs", type=int, default=5, help="counted steps of each commit")
    parser.add_argument("--out", type=Path, default=Path("tools/bench/results/dapo_commits.json"))
    options = parser.parse_args(arguments)
    names = [
        subprocess.run(["git", "rev-parse", "--short", each], capture_output=True, text=True, check=True).stdout.strip()
        for each in options.commits
    ]
    load = os.getloadavg()[0]
    figures = figures_of(measure(names, options.pairs))
    figures |= {"load_before_and_after": [load, os.getloadavg()[0]]}
    settings = vars(options) | {"omp_num_threads": os.environ.get("OMP_NUM_THREADS"), "warm_up": WARM_UP}
    write_result(options.out, "dapo_commits", settings, figures)


if __name__ == "__main__":
    main()
