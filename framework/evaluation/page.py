"""HTML pages from the templates in `templates/`. The templates escape every text; pages load and run nothing."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import jinja2
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from framework.recipe.credentials import masked
from framework.run.files import write_text

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("framework.evaluation"),
    autoescape=True,  # scenes' names and models' answers are anybody's text
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
CURVE_COLOUR, AXIS_COLOUR, GRID_COLOUR = "#2563eb", "#5c6879", "#e3e7ed"


def write_page(path: Path, template: str, **values: Any) -> None:
    """Render `template` with `values` and replace the file at `path` atomically. Creates missing folders."""
    write_text(path, render_page(template, **values), durable=False)


def render_page(template: str, **values: Any) -> str:
    """`template` with `values`, every text escaped and without secrets: an answer or a caption may repeat one."""
    return masked(_TEMPLATES.get_template(template).render(**values))


def data_uri(data: bytes, mime_type: str) -> str:
    """`data` as a URI that an image's `src` takes."""
    return f"data:{mime_type};base64,{base64.b64encode(data).decode()}"


def chart(x_label: str, y_label: str = "") -> Axes:
    """Empty axes in the pages' style."""
    axes = Figure(figsize=(6.6, 2.7), layout="constrained").add_subplot()
    axes.set_xlabel(x_label, color=AXIS_COLOUR, fontsize=9)
    axes.set_ylabel(y_label, color=AXIS_COLOUR, fontsize=9)
    axes.tick_params(colors=AXIS_COLOUR, labelsize=9, length=0)
    axes.grid(color=GRID_COLOUR, linewidth=0.8)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes


def chart_image(axes: Axes) -> str:
    """A chart as SVG, as a data URI."""
    svg = io.BytesIO()
    cast(Figure, axes.figure).savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    return data_uri(svg.getvalue(), "image/svg+xml")


def curve_image(points: Sequence[tuple[int, float]], window: int = 25) -> str:
    """A metric's (step, value) `points` drawn as SVG, as a data URI.

    More than `2 * window` points are drawn pale, below their centred moving average over `window` points.
    """
    axes = chart("step")
    steps, values = [step for step, _ in points], [value for _, value in points]
    crowded = len(points) > 2 * window
    axes.plot(steps, values, color=CURVE_COLOUR, linewidth=0.8 if crowded else 1.6, alpha=0.3 if crowded else 1.0)
    if crowded:
        axes.plot(steps, _smooth(values, window), color=CURVE_COLOUR, linewidth=1.8)
    return chart_image(axes)


def _smooth(values: Sequence[float], window: int) -> list[float]:
    """The centred moving average; the window shrinks towards both ends."""
    spans = [min(window // 2, i, len(values) - 1 - i) for i in range(len(values))]
    return [sum(values[i - span : i + span + 1]) / (2 * span + 1) for i, span in enumerate(spans)]
