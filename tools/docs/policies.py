"""Writes what reinforcement learning gained, over seeds, into docs/rl.md, README.md and the head of its recipe.

    make policies                                   # after `make figures`: trains the seeds, writes their figures
    python -m tools.docs.policies RUN RUN RUN --unweighted RUN RUN RUN

The runs are of `recipe=rl_dapo scale=tiny`, finished, and of one commit; those after `--unweighted` have no prompt
weights.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import ttest_1samp

from tools.docs.figures import ROOT, replaced

EVAL, UNTRAINED, TRAINED = "simulated_hard", "untrained", "rl"
MEASURES = {
    "reward": ("reward", 2),
    "collisions": ("collision", 1),
    "at fault": ("at_fault_collision", 1),
    "off road": ("off_road", 1),
    "progress": ("progress", 0),
    "comfortable": ("comfortable", 0),
    "PDM score": ("planning_score", 2),
}
"""The table's columns: {title: (measure in the results, decimals)}; those that are no scores are shares."""
SCORES = ("reward", "PDM score")
TESTED = {"reward": 1, "collisions": -1, "off road": -1}
"""What a seed must improve, and whether up or down."""
TABLE = re.compile(r"^\| \| reward \|.*?(?=^Judging a step's)", re.DOTALL | re.MULTILINE)
"""The table of docs/rl.md and what it says of it."""
GALLERY = re.compile(r"(?<=; )collisions [^|]*?(?= \(\[three seeds\]\(docs/rl\.md\)\))")
"""The figures in README.md's list of recipes."""
EXPECTED = re.compile(r"^# Expect with scale=tiny, .*?\(docs/rl\.md\)\.$", re.DOTALL | re.MULTILINE)
"""The figures in the recipe's head."""

Figures = dict[str, float]
"""A policy's figures by column."""


def figures(results: Mapping[str, Any], stage: str, who: str = "model") -> Figures:
    """The figures of `who` after `stage`, of a run's `results.json`."""
    measured = results[stage][EVAL]["simulation"][who]
    return {title: measured[name]["all"] for title, (name, _) in MEASURES.items()}


def shown(title: str, values: Sequence[float]) -> str:
    """The mean of a column's `values`, and their standard deviation where there are several."""
    decimals = MEASURES[title][1]
    scale, unit = (1, "") if title in SCORES else (100, " %")
    mean = f"{scale * statistics.mean(values):.{decimals}f}"
    spread = f" ± {scale * statistics.stdev(values):.{decimals}f}" if len(values) > 1 else ""
    return f"{mean}{spread}{unit}"


def row(label: str, policies: Sequence[Figures]) -> str:
    """A row of the table."""
    cells = (shown(title, [each[title] for each in policies]) for title in MEASURES)
    return f"| {label} | {' | '.join(cells)} |"


def table(runs: Sequence[Mapping[str, Any]], unweighted: Sequence[Mapping[str, Any]], sha: str) -> str:
    """What docs/rl.md shows of the results of `runs`, and of those without prompt weights."""
    first, trained = runs[0], [figures(run, TRAINED) for run in runs]
    before = figures(first, UNTRAINED)
    lines = [f"| | {' | '.join(MEASURES)} |", "| --- " * (1 + len(MEASURES)) + "|"]
    lines += [row("the demo's policy", [before]), row("after `rl_dapo`", trained)]
    if unweighted:
        lines.append(row("`rl_dapo` without prompt weights", [figures(run, TRAINED) for run in unweighted]))
    lines += [row(who, [figures(first, UNTRAINED, who)]) for who in ("constant velocity", "stay")]
    lines += [row("the expert", [figures(first, UNTRAINED, "expert")]), ""]
    lines += [f"Measured at commit {sha}. {gains(before, trained)}", "", ""]
    return "\n".join(lines)


def gains(before: Figures, trained: Sequence[Figures]) -> str:
    """How many seeds improve, and how sure that is."""
    better = sum(all(sign * (each[title] - before[title]) > 0 for title, sign in TESTED.items()) for each in trained)
    said = f"Of {len(trained)} seeds, {better} improve in reward, collisions and off-road rate alike"
    if len(trained) == 1:
        return f"{said}."
    odds = {title: ttest_1samp([each[title] for each in trained], before[title]).pvalue for title in TESTED}
    listed = ", ".join(f"{title} p = {odd:.1g}" for title, odd in odds.items())
    return f"{said}\n(two-sided t-test over seeds: {listed})."


def gained(runs: Sequence[Mapping[str, Any]], arrow: str) -> str:
    """Collisions and PDM score before and after."""
    before, trained = figures(runs[0], UNTRAINED), [figures(run, TRAINED) for run in runs]
    parts = []
    for title in ("collisions", "PDM score"):
        was = shown(title, [before[title]]).removesuffix(" %")
        parts.append(f"{title} {was} {arrow} {shown(title, [each[title] for each in trained])}")
    return ", ".join(parts)


def read(folders: Sequence[Path]) -> tuple[list[Mapping[str, Any]], str]:
    """The results of runs, and the commit of all. Raises `ValueError` where they have no commit or several."""
    results = [json.loads((folder / "results.json").read_text(encoding="utf-8")) for folder in folders]
    commits = {json.loads((folder / "code.json").read_text(encoding="utf-8"))["sha"] for folder in folders}
    if len(commits) != 1 or None in commits:
        raise ValueError(f"the runs are of the commits {sorted(map(str, commits))}; give runs of one commit")
    return results, commits.pop()[:7]


def main(arguments: list[str] | None = None) -> int:
    """Write the figures. Returns 0."""
    parser = argparse.ArgumentParser(prog="python -m tools.docs.policies", description=__doc__.partition("\n")[0])
    parser.add_argument("runs", type=Path, nargs="+", help="the folders of finished runs, one a seed")
    parser.add_argument("--unweighted", type=Path, nargs="*", default=[], help="runs without prompt weights")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout to write to")
    options = parser.parse_args(arguments)
    results, sha = read([*options.runs, *options.unweighted])
    runs, unweighted = results[: len(options.runs)], results[len(options.runs) :]
    scenes = runs[0][UNTRAINED][EVAL]["simulation"]["model"]["scenes"]["all"]
    head = f"# Expect with scale=tiny, on {scenes:.0f} held-out scenes: {gained(runs, '->')} (docs/rl.md)."
    for name, place, new in (
        ("docs/rl.md", TABLE, table(runs, unweighted, sha)),
        ("README.md", GALLERY, gained(runs, "→")),
        ("recipes/rl_dapo.yaml", EXPECTED, head),
    ):
        file = options.root / name
        file.write_text(replaced(file.read_text(encoding="utf-8"), place, new, name), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
