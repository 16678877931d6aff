"""How a run tells the search that started it how it does, and how the search ends a run that does poorly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

Report = Callable[[Mapping[str, float], int], None]
"""Takes an evaluation's figures by name (`held_out/drive/ade`) and the optimizer step. Raises `Pruned` where the run is
to end."""

_report: ContextVar[Report | None] = ContextVar("report", default=None)


class Pruned(Exception):  # noqa: N818 - reads as what happened
    """The search ends this run: others do better."""


@contextmanager
def watching(report: Report) -> Iterator[None]:
    """Runs inside report their figures to `report`."""
    token = _report.set(report)
    try:
        yield
    finally:
        _report.reset(token)


def report_figures(figures: Mapping[str, float], step: int) -> None:
    """Tell the search, where there is one, the figures of an evaluation at `step`. Raises `Pruned`."""
    report = _report.get()
    if report is not None:
        report(figures, step)
