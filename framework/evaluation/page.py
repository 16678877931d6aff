"""Pieces of the report's page: pure functions from values to HTML. All text is escaped here, and only here."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources

from matplotlib.figure import Figure

from framework.evaluation.slices import ALL, Sliced
from framework.evaluation.table import Column

Cell = tuple[str, str]
"""A cell's text and its CSS class."""
CURVE_COLOUR = "#2563eb"
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""A browser that opens the page must not fetch or run anything, whatever its texts say."""


def text(value: object) -> str:
    """Any value as text that cannot be markup."""
    return escape(str(value), quote=True)


def page(title: str, body: Iterable[str]) -> str:
    """The whole file, which loads nothing from elsewhere."""
    style = resources.files("framework.evaluation").joinpath("report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{text(title)}</title><style>{style}</style></head><body><main>{''.join(body)}</main></body></html>"
    )


def identity(values: Mapping[str, object]) -> str:
    """Names and values in a line."""
    pairs = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in values.items())
    return f'<dl class="identity">{pairs}</dl>'


def tile(label: str, value: str, beside: str = "", verdict: str = "") -> str:
    """A figure with what it is to be compared with; `verdict` is better, worse or empty."""
    shade = f" {text(verdict)}" if verdict else ""
    return (
        f'<div class="tile"><div class="label">{text(label)}</div><div class="value">{text(value)}</div>'
        f'<div class="beside{shade}">{text(beside)}</div></div>'
    )


def card(title: str, *parts: str) -> str:
    """A titled box around finished HTML."""
    return f'<section class="card"><h3>{text(title)}</h3>{"".join(parts)}</section>'


def grid(headings: Sequence[Cell], rows: Sequence[tuple[str, Sequence[Cell]]]) -> str:
    """A table: headings, then rows as (CSS class, cells). A heading's unit goes after a line break."""
    head = "".join(_heading(content, css) for content, css in headings)
    lines = []
    for row_class, cells in rows:
        data = "".join(f"<td{_css(css)}>{text(content)}</td>" for content, css in cells)
        lines.append(f"<tr{_css(row_class)}>{data}</tr>")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _heading(content: str, css: str) -> str:
    label, _, unit = content.partition("\n")
    small = f"<small>{text(unit)}</small>" if unit else ""
    return f"<th{_css(css)}>{text(label)}{small}</th>"


def _css(name: str) -> str:
    return f' class="{text(name)}"' if name else ""


def comparison(first: str, columns: Sequence[Column], rows: Mapping[str, Sliced], baselines: Sequence[str]) -> str:
    """Methods by metrics over all scenes; the best of the model's stages is bold in each column, baselines stand below
    a rule.
    """
    stages = [name for name in rows if name not in baselines]
    best = {column.metric: _best(column, [rows[name] for name in stages]) for column in columns}
    lines = []
    for name, row in rows.items():
        css = "last" if stages and name == stages[-1] else ""
        if name in baselines:
            css = "baseline first-baseline" if name == baselines[0] else "baseline"
        cells = [(name, "")]
        for column in columns:
            value = row.get(column.metric, {}).get(ALL)
            top = name in stages and value is not None and value == best[column.metric]
            cells.append((column.write(value), "best" if top else ""))
        lines.append((css, cells))
    return grid([(first, ""), *((heading(column), "") for column in columns)], lines)


def _best(column: Column, rows: Sequence[Sliced]) -> float | None:
    """The best value, unless all rows have the same."""
    values = [row[column.metric][ALL] for row in rows if ALL in row.get(column.metric, {})]
    return (max if column.high else min)(values) if len(set(values)) > 1 else None


def by_slice(columns: Sequence[tuple[Column, Sliced]], counts: Mapping[str, float], unit: str) -> str:
    """Slices by metrics: each column is a metric of some method. `counts` is the number of `unit` in each slice."""
    headings = [("scenario kind", ""), (unit, ""), *((heading(column), "") for column, _ in columns)]
    lines = []
    for name, count in counts.items():
        cells = [(name.replace("_", " "), ""), (f"{count:.0f}", "")]
        cells += [(column.write(sliced.get(column.metric, {}).get(name)), "") for column, sliced in columns]
        lines.append(("last" if name == ALL else "", cells))
    return grid(headings, lines)


def heading(column: Column) -> str:
    """Label and arrow, the unit on a second line."""
    return f"{column.label} {'↑' if column.high else '↓'}\n{column.unit}"


def image(data: bytes, kind: str, alt: str, css: str = "") -> str:
    """An image inside the page; `kind` is its MIME type."""
    return f'<img{_css(css)} alt="{text(alt)}" src="data:{kind};base64,{base64.b64encode(data).decode()}">'


def curve(name: str, points: Sequence[tuple[int, float]], window: int = 25) -> str:
    """A metric over steps; where points are many, pale below its mean over the `window` points around each step."""
    figure = Figure(figsize=(6.6, 2.7), layout="constrained")
    axes = figure.add_subplot()
    steps, values = [step for step, _ in points], [value for _, value in points]
    spans = [min(window // 2, i, len(values) - 1 - i) for i in range(len(values))]
    smoothed = [sum(values[i - span : i + span + 1]) / (2 * span + 1) for i, span in enumerate(spans)]
    crowded = len(points) > 2 * window
    axes.plot(steps, values, color=CURVE_COLOUR, linewidth=0.8 if crowded else 1.6, alpha=0.3 if crowded else 1.0)
    if crowded:
        axes.plot(steps, smoothed, color=CURVE_COLOUR, linewidth=1.8)
    axes.set_xlabel("step", color="#5c6879", fontsize=9)
    axes.tick_params(colors="#5c6879", labelsize=9, length=0)
    axes.grid(color="#e3e7ed", linewidth=0.8)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    return image(drawn.getvalue(), "image/svg+xml", f"{name} over steps", "curve")
