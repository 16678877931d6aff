"""The link between a run and the hyperparameter search that started it: metrics up, an early end down."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

Report = Callable[[Mapping[str, float], int], None]
"""Takes an evaluation's metrics by name (`held_out/drive/ade`) and the optimizer step.

Raises `Pruned` to end the run.
"""

_report: ContextVar[Report | None] = ContextVar("report", default=None)


class Pruned(Exception):  # noqa: N818 - reads as what happened
    """The search ends this run early, because other trials do better."""


@contextmanager
def reporting_to(report: Report) -> Iterator[None]:
    """Let the runs inside the block report their metrics to `report`."""
    token = _report.set(report)
    try:
        yield
    finally:
        _report.reset(token)


def report_metrics(metrics: Mapping[str, float], step: int) -> None:
    """Report an evaluation's `metrics` at `step` to the search, if there is one. Raises `Pruned`."""
    report = _report.get()
    if report is not None:
        report(metrics, step)
