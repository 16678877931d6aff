"""Fits scaling laws to trained runs: how loss and zero-shot figures follow parameters, data and compute.

python -m framework scaling RUN RUN ...
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import NullFormatter

from framework.evaluation.compare import no_run
from framework.evaluation.grid import Cell, Grid, Heading, Row
from framework.evaluation.page import CURVE_COLOUR, chart, chart_image, write_page
from framework.evaluation.results import LOSS, MODEL
from framework.evaluation.scaling_fit import (
    FEWEST,
    Law,
    PowerLaw,
    TrainedRun,
    bootstrap_runs,
    fit_law,
    fit_power,
    frontier,
    slope,
)
from framework.model.flops import PARTS
from framework.recipe.overrides import COMMAND_LINE
from framework.recipe.problem import Problem, RecipeError
from framework.run.files import write_json
from framework.run.layout import METRICS_FILE, RESULTS_FILE, named_run
from framework.scene.types import ALL
from framework.tracking.metrics_file import read_all_series

PAGE, FIGURES = "scaling.html", "scaling.json"
"""The page and the numbers, in the folder that holds the runs."""
DRIVEN = "ade"
"""The zero-shot figure that is drawn next to the losses: mean displacement (m)."""
DENSE, RECOMPUTED = "dense", "recomputed"


def scaling(names: Sequence[str]) -> int:
    """Fit laws to the runs `names`, print them and write page and numbers next to the runs. Returns the exit code.

    Raises `RecipeError` for fewer than `FEWEST` runs with losses, and for a folder that is no run.
    """
    folders = [_folder(name) for name in dict.fromkeys(names)]
    runs = [run for folder in folders if (run := read_run(folder)) is not None]
    losses = sorted({name for run in runs for name in run.figures if name.endswith(f"/{LOSS}/{LOSS}")})
    known = {name: [run for run in runs if name in run.figures] for name in losses}
    known = {name: having for name, having in known.items() if len(having) >= FEWEST}
    if not known:
        message = f"{len(runs)} of {len(folders)} runs have metrics and a loss; a law needs {FEWEST} of the same eval"
        raise RecipeError([Problem(COMMAND_LINE, "scaling", message)])
    fits = {name: fitted(having, name) for name, having in known.items()}
    for name, fit in fits.items():
        print(f"{name}, {len(known[name])} runs")
        for line in described(fit):
            print(f"  {line}")
    driven = sorted({name for run in runs for name in run.figures if name.endswith(f"/{DRIVEN}")})
    where = Path(folders[0]).parent
    write_json(where / FIGURES, {"runs": [asdict(run) for run in runs], "fits": fits})
    charts = [(name, _drawn(known[name], name, fits[name])) for name in known]
    charts += [(name, _drawn([run for run in runs if name in run.figures], name, None)) for name in driven]
    write_page(
        where / PAGE,
        "scaling.html.j2",
        title="Scaling study",
        identity={"runs": len(runs)},
        fits={name: list(described(fit)) for name, fit in fits.items()},
        charts=charts,
        grid=_grid(runs, [*known, *driven]),
    )
    print(f"page: {where / PAGE}")
    return 0


def read_run(folder: Path) -> TrainedRun | None:
    """What the run in `folder` was given, by its metrics, and its newest figures; None where it lacks either."""
    parts = {f"throughput/{part}_tflop" for part in PARTS}
    series = read_all_series(folder / METRICS_FILE, lambda name: name in parts | {"tokens_per_s", "step_s"})
    try:
        stages = json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not {"tokens_per_s", "step_s", f"throughput/{DENSE}_tflop"} <= series.keys():
        return None
    seconds = dict(series["step_s"])
    tokens = _total([(step, speed * seconds[step]) for step, speed in series["tokens_per_s"]])
    tflop = {part: _total(series.get(f"throughput/{part}_tflop", [])) for part in PARTS}
    compute = 1e12 * (sum(tflop.values()) - tflop.get(RECOMPUTED, 0.0))
    parameters = 1e12 * tflop[DENSE] / (6 * tokens)  # forward and backward: 6 FLOPs a parameter and token
    return TrainedRun(folder.name, parameters, tokens, compute, _newest_figures(stages))


def fitted(runs: Sequence[TrainedRun], metric: str) -> dict[str, Any]:
    """The laws of one loss with intervals, and what the cheaper runs predict of the most expensive."""
    n, d, c = (np.array([getattr(run, name) for run in runs]) for name in ("parameters", "tokens", "compute"))
    losses = np.array([run.figures[metric] for run in runs])

    def exponents(law: Law, rows: list[int]) -> list[float]:
        best = _best(c[rows], losses[rows])
        return [law.alpha, law.beta, law.floor, slope(c[rows][best], losses[rows][best])]

    def refitted(rows: list[int]) -> list[float]:
        return exponents(fit_law(n[rows], d[rows], losses[rows]), rows)

    names = ("alpha", "beta", "floor", "slope")
    every, law = list(range(len(runs))), fit_law(n, d, losses)
    values, intervals = exponents(law, every), bootstrap_runs(len(runs), refitted)
    cheaper = [row for row in every if c[row] < 0.999 * c.max()]
    rest = [row for row in every if row not in cheaper]
    best = _best(c, losses)
    power = fit_power(c[best], losses[best])
    return {
        "law": asdict(law),
        "power": asdict(power),
        **{name: [value, *interval] for name, value, interval in zip(names, values, intervals, strict=True)},
        "predicted": float(fit_law(n[cheaper], d[cheaper], losses[cheaper])(n[rest], d[rest]).mean()),
        "measured": float(losses[rest].mean()),
        "next": [float(10 * c.max()), float(power(np.array([10 * c.max()]))[0])],
    }


def described(fit: dict[str, Any]) -> list[str]:
    """The fit in words."""
    law, power = fit["law"], fit["power"]
    error = fit["predicted"] / fit["measured"] - 1
    return [
        f"L(N, D) = {law['floor']:.3g} + {law['a']:.3g} / N^{_with(fit['alpha'])} "
        f"+ {law['b']:.3g} / D^{_with(fit['beta'])}",
        f"the best runs: L(C) = {power['floor']:.3g} + {power['k']:.3g} / C^{power['gamma']:.2g}, "
        f"d ln L / d ln C = {_with(fit['slope'])}",
        f"the most expensive runs, predicted from the others: {fit['predicted']:.3f}, measured {fit['measured']:.3f} "
        f"({100 * error:+.1f} %)",
        f"ten times the compute ({fit['next'][0]:.2g} FLOPs) is predicted to reach {fit['next'][1]:.3f}",
    ]


def _total(points: Sequence[tuple[int, float]]) -> float:
    """The sum over all steps of what is known of some: a run may log every tenth."""
    return points[-1][0] * sum(value for _, value in points) / len(points) if points else 0.0


def _newest_figures(stages: dict[str, Any]) -> dict[str, float]:
    """The model's figures over all scenes by EVAL/SECTION/METRIC, of the last stage that has the eval."""
    return {
        f"{eval_name}/{section}/{metric}": float(sliced[ALL])
        for evals in stages.values()
        for eval_name, results in evals.items()
        for section, methods in results.items()
        for metric, sliced in methods.get(MODEL, {}).items()
        if ALL in sliced
    }


def _best(compute: Any, losses: Any) -> list[int]:
    """The frontier; all runs where it has but one."""
    rows = frontier(compute, losses)
    return rows if len(set(compute[rows])) > 1 else list(range(len(losses)))


def _with(value: Sequence[float]) -> str:
    middle, low, high = value
    return f"{middle:.2g} [{low:.2g}, {high:.2g}]"


def _folder(name: str) -> Path:
    if (folder := named_run(name)) is not None:
        return folder
    raise RecipeError([no_run(name)])


def _grid(runs: Sequence[TrainedRun], metrics: Sequence[str]) -> Grid:
    """The runs by compute."""
    headings = [Heading(text) for text in ("run", "parameters", "tokens", "FLOPs", *metrics)]
    rows = []
    for run in sorted(runs, key=lambda run: run.compute):
        given = [run.name, f"{run.parameters:.2g}", f"{run.tokens:.2g}", f"{run.compute:.2g}"]
        rows.append(
            Row([Cell(text) for text in [*given, *(f"{run.figures.get(name, np.nan):.3f}" for name in metrics)]])
        )
    return Grid(headings, rows)


def _drawn(runs: Sequence[TrainedRun], metric: str, fit: dict[str, Any] | None) -> str:
    """A metric over compute, a line for each size; for a loss, the power law of its `fit` ten times further."""
    axes = chart("training FLOPs", metric)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_minor_formatter(NullFormatter())  # within a decade its labels overlap
    sizes = sorted({round(run.parameters, -3) for run in runs})
    for number, size in enumerate(sizes):
        of_size = sorted((run for run in runs if round(run.parameters, -3) == size), key=lambda run: run.compute)
        shade = 0.35 + 0.65 * (number + 1) / len(sizes)
        axes.plot([run.compute for run in of_size], [run.figures[metric] for run in of_size], "o", markersize=4,
                  color=CURVE_COLOUR, alpha=shade, label=f"{size / 1e6:.2g} M parameters")  # fmt: skip
    if fit is not None:
        compute = [run.compute for run in runs]
        along = np.geomspace(min(compute), 10 * max(compute), 50)
        axes.plot(along, PowerLaw(**fit["power"])(along), color="#f97316", linewidth=1.4, label="power law")
    axes.legend(fontsize=8, frameon=False)
    return chart_image(axes)
