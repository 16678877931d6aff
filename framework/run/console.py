"""What a run shows people: rows of facts, tables, and one progress bar a phase. Logs get text without control codes.

Only rank 0 shows anything. A terminal shows bars; elsewhere the heartbeat reports the steps.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from framework.run.folder import is_first_rank

LABEL_WIDTH = 10
"""Columns of a row's label."""


def on_terminal() -> bool:
    """Whether somebody watches: standard output is a terminal, and this is rank 0."""
    return sys.stdout.isatty() and is_first_rank()


def console() -> Console:
    """Standard output as it is now, above the progress bar where there is one. Long lines are left to the terminal, so
    that paths can be copied whole.
    """
    if _shown:
        return _shown[-1].progress.console
    return Console(file=sys.stdout, soft_wrap=True, highlight=False)


def show_title(title: str, purpose: str) -> None:
    """Print the first line of a run: its name and what it is for."""
    if is_first_rank():
        console().print(Text.assemble((title, "bold"), ("  " + purpose if purpose else "")))


def show_rows(rows: Mapping[str, str]) -> None:
    """Print facts, one to a line: a label and a text. The texts of one call are aligned."""
    width = max([LABEL_WIDTH, *(len(label) + 2 for label in rows)])
    if is_first_rank():
        for label, text in rows.items():
            console().print(Text.assemble("  ", (f"{label:<{width}}", "cyan"), text))


def show_table(table: str) -> None:
    """Print a text table. A terminal cuts its lines rather than breaks them; a log or a pipe gets them whole."""
    watched = on_terminal()
    if is_first_rank():
        console().print(
            Text(f"\n{table}\n"), no_wrap=True, overflow="crop" if watched else "ignore", soft_wrap=not watched
        )


class ProgressBar:
    """A phase's bar: its name, how far it is, its figures, and the time left. Drawn on a terminal only.

    The time left is measured over the whole phase, so that one slow step does not make it jump.

    Args:
        name: The phase's name.
        total: Units of work of the phase.
        start: Units that an earlier attempt did.
    """

    def __init__(self, name: str, total: int, start: int = 0) -> None:
        self.streams = sys.stdout, sys.stderr
        self.progress = Progress(
            TextColumn("{task.description}", style="bold"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            _Figures(),
            _TimeLeft(start),
            console=console(),
            refresh_per_second=4,
        )
        self.task = self.progress.add_task(name, total=total, completed=start, figures="")

    def update(self, done: int, figures: str = "") -> None:
        """Advance to `done` units, and show the newest `figures`."""
        self.progress.update(self.task, completed=done, figures=figures)


class _Figures(ProgressColumn):
    """The newest figures. They and the bar give way on a narrow terminal, so that a phase has one line."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["figures"], no_wrap=True, overflow="ellipsis")


class _TimeLeft(ProgressColumn):
    """The time left at the speed since the bar appeared, then the time that the phase took."""

    def __init__(self, start: int) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self.start = start

    def render(self, task: Task) -> Text:
        done, elapsed = task.completed - self.start, task.elapsed or 0.0
        if task.finished:
            return Text(f"took {duration(task.finished_time or elapsed)}", style="green")
        if done <= 0 or task.remaining is None:
            return Text("")
        return Text(f"{duration(elapsed * task.remaining / done)} left", style="cyan")


_shown: list[ProgressBar] = []
"""The bar on the terminal, if any: a second one would draw over it."""


@contextmanager
def progress_bar(name: str, total: int, start: int = 0) -> Iterator[ProgressBar | None]:
    """Show a bar for the duration of the block; None where nobody watches, or inside another phase."""
    if not on_terminal() or _shown:
        yield None
        return
    bar = ProgressBar(name, total, start)
    _shown.append(bar)
    try:
        with bar.progress:
            yield bar
    finally:
        _shown.remove(bar)


def _forget_bar() -> None:
    """In a forked worker: no bar is its own, and the lock of the bar's console may be held for ever."""
    if _shown:
        sys.stdout, sys.stderr = _shown[0].streams
        _shown.clear()


os.register_at_fork(after_in_child=_forget_bar)


def duration(seconds: float) -> str:
    """`seconds` as people say it: 42 s, 3 min 20 s, 5 h 2 min, 3 d 4 h."""
    whole = round(seconds)
    for unit, size, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"
