"""Writes a demo run's figures into README.md and the head of its recipe, and its commit below the terminal's picture.

make figures                                    # runs the demo, draws its terminal, writes its figures
python -m tools.docs.figures outputs/runs/demo  # the figures of a run that has ended
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
EVAL, BASELINE = "held_out", "constant velocity"
TABLE = re.compile(r"(?<=\n\n)\| after stage, or baseline \|.*?\n\n", re.DOTALL)
"""The table of README.md."""
MEASURED = re.compile(r"(?<=\(measured at commit )[^;]+(?=;)")
"""The commit in the text before it, and what is said of it."""
EXPECTED = re.compile(r"^# Expect with seed 0, .*$", re.MULTILINE)
"""The line of a recipe's head."""
PICTURE = re.compile(r"^!\[[^]]*\]\(pictures/demo\.svg\)\n\n\*.*?\*$", re.DOTALL | re.MULTILINE)
"""The terminal's picture in docs/quickstart.md, and what is said of it."""

Row = tuple[float, float, float, float | None]
"""ADE (m) and shares of collisions, of leaving the road and of right answers."""


def rows(results: Mapping[str, Any]) -> dict[str, Row]:
    """The figures of a run's `results.json`, after each stage, and of the baseline."""
    found: dict[str, Row] = {}
    for stage, evals in results.items():
        drive, answer = evals[EVAL]["drive"], evals[EVAL]["answer"]
        found[stage] = (*_driving(drive["model"]), answer["model"]["accuracy"]["all"])
        baseline = (*_driving(drive[BASELINE]), None)
    return found | {BASELINE: baseline}


def _driving(figures: Mapping[str, Any]) -> tuple[float, float, float]:
    return figures["ade"]["all"], figures["collision"]["all"], figures["off_road"]["all"]


def table(results: Mapping[str, Any]) -> str:
    """The figures as README.md shows them."""
    lines = ["| after stage, or baseline | ADE (m) | collisions | off road | answer accuracy |", "| --- " * 5 + "|"]
    for name, (ade, collisions, off_road, accuracy) in rows(results).items():
        answers = "" if accuracy is None else f"{accuracy:.1%}".replace("%", " %")
        lines.append(f"| {name} | {ade:.2f} | {100 * collisions:.1f} % | {100 * off_road:.1f} % | {answers} |")
    return "\n".join(lines) + "\n\n"


def expectation(results: Mapping[str, Any]) -> str:
    """The figures before and after training, as the recipe's head shows them."""
    stages = list(results)
    known = rows(results)
    (ade, collisions, _, right), (ade_after, collisions_after, _, right_after) = known[stages[0]], known[stages[-1]]
    scenes = results[stages[-1]][EVAL]["drive"]["model"]["scenes"]["all"]
    return (
        f"# Expect with seed 0, on {scenes:.0f} held-out scenes: ADE {ade:.2f} -> {ade_after:.2f} m, collisions "
        f"{100 * collisions:.1f} -> {100 * collisions_after:.1f} %, answers right {100 * (right or 0):.0f} -> "
        f"{100 * (right_after or 0):.1f} % (README.md)."
    )


def drawn(run: Path, sha: str) -> str:
    """The terminal's picture of the `run`, and what is said of it."""
    scale = "" if run.name == "demo" else f" ({run.name})"
    return f"![What the demo prints, on a terminal](pictures/demo.svg)\n\n*`make demo`{scale}, at commit {sha[:7]}.*"


def replaced(text: str, place: re.Pattern[str], new: str, name: str) -> str:
    """`text` with `new` in the one place of `place`. Raises `ValueError` where file `name` lacks the place."""
    written, count = place.subn(lambda _: new, text)
    if count != 1:
        raise ValueError(f"{name}: {count} places match {place.pattern!r}; the figures need one")
    return written


def main(arguments: list[str] | None = None) -> int:
    """Write the figures. Returns 0."""
    parser = argparse.ArgumentParser(prog="python -m tools.docs.figures", description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="the folder of a demo run that has ended")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout to write to")
    options = parser.parse_args(arguments)
    results, code = (
        json.loads((options.run / name).read_text(encoding="utf-8")) for name in ("results.json", "code.json")
    )
    if not code["sha"]:
        raise ValueError(f"{options.run}/code.json: names no commit; run the demo in a checkout with git")
    for name, place, new in (
        ("README.md", TABLE, table(results)),
        ("README.md", MEASURED, code["sha"][:7]),
        ("docs/quickstart.md", PICTURE, drawn(options.run, code["sha"])),
        ("recipes/demo.yaml", EXPECTED, expectation(results)),
    ):
        file = options.root / name
        file.write_text(replaced(file.read_text(encoding="utf-8"), place, new, name), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
