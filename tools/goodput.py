"""Account for a run's time: seconds by attempt and phase, GPU hours, and the run's goodput.

python -m tools.goodput RUN [--draw goodput.png]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from framework.run.goodput import REPLAY, Account, accounts, goodput
from framework.run.phases import Phase, intervals, read_phases

COLUMNS = (*Phase, REPLAY)
"""The phases as columns, in the order in which an attempt reaches them."""
COLOURS = {
    Phase.QUEUE: "#d9d9d9", Phase.START: "#fdd0a2", Phase.INIT: "#fdae6b", Phase.LOAD: "#fd8d3c",
    Phase.FIRST_BATCH: "#e6550d", Phase.COMPILE: "#a63603", Phase.PRODUCTIVE: "#31a354", Phase.CHECKPOINT: "#6baed6",
    Phase.EVALUATE: "#9e9ac8", Phase.HANG: "#e7298a", Phase.LOST: "#cb181d",
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and draw the phases if asked to. Returns 1 for a folder without phase files."""
    parser = argparse.ArgumentParser(prog="python -m tools.goodput", description="Account for a run's time.")
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--draw", type=Path, metavar="FILE", help="draw every node's phases over time")
    options = parser.parse_args(arguments)
    attempts = accounts(options.run, time.time())
    if not attempts:
        print(f"{options.run}: no phases.node-*.jsonl; give the folder of a run that has started", file=sys.stderr)
        return 1
    print(report(attempts))
    if options.draw is not None:
        draw(options.run, options.draw)
        print(f"drawn: {options.draw}")
    return 0


def report(attempts: Sequence[Account]) -> str:
    """A row per attempt (seconds by phase, averaged over GPUs; steps; GPU hours; why it ended), totals, and goodput."""
    columns = [name for name in COLUMNS if any(account.seconds.get(name) for account in attempts)]
    rows = [["attempt", *columns, "steps", "replayed", "GPU h", "ended by"]]
    for account in attempts:
        rows.append([str(account.attempt), *_seconds(account, columns), *_rest(account)])
    hours = {name: sum(account.gpu_hours.get(name, 0.0) for account in attempts) for name in columns}
    total = sum(account.total for account in attempts)
    costs = [f"{hours[name]:.4g}" for name in columns]
    replayed = sum(account.replayed for account in attempts)
    trained = sum(account.steps for account in attempts)
    rows.append(["GPU h", *costs, str(trained), str(replayed), f"{total:.4g}", ""])
    return f"{_aligned(rows)}\n\ngoodput: {goodput(attempts):.1%} of {total:.4g} GPU hours went into steps that count"


def _seconds(account: Account, columns: Sequence[str]) -> list[str]:
    return [f"{account.seconds[name]:.1f} s" if name in account.seconds else "" for name in columns]


def _rest(account: Account) -> list[str]:
    return [str(account.steps), str(account.replayed), f"{account.total:.4g}", account.why or ""]


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    *numbers, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = []
    for row in rows:
        cells = (cell.rjust(width) for cell, width in zip(row[:-1], numbers, strict=True))
        lines.append("  ".join([*cells, row[-1]]).rstrip())
    return "\n".join(lines)


def draw(run: Path, file: Path) -> None:
    """Draw a bar per node: its phases over hours."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    nodes = read_phases(run)
    start = min(lines[0].time for lines in nodes.values())
    figure = Figure(figsize=(12, 1.5 + 0.4 * len(nodes)), layout="constrained")
    axes = figure.subplots()
    for place, lines in enumerate(nodes.values()):
        for interval in intervals(lines, time.time()):
            if interval.line.phase in COLOURS:
                bar = [((interval.line.time - start) / 3600, interval.seconds / 3600)]
                axes.broken_barh(bar, (place - 0.4, 0.8), color=COLOURS[interval.line.phase])
    axes.set_yticks(range(len(nodes)), [f"node {node}" for node in nodes])
    axes.set_xlabel("hours since the run was submitted")
    handles = [Patch(color=colour, label=str(phase)) for phase, colour in COLOURS.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=6)
    figure.savefig(file)


if __name__ == "__main__":
    sys.exit(main())
