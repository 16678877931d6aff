"""The one place where logging and warnings are set up, for runs, supervisors and watchers alike.

Messages go to standard error, from which a supervisor tells why a worker failed. Libraries' messages below a warning
are dropped, and so is each warning that `UNHELPFUL` names; every other warning is shown.
"""

from __future__ import annotations

import logging
import sys
import warnings
from dataclasses import dataclass

from rich.text import Text

from framework.run.console import console, on_terminal
from framework.run.folder import is_first_rank


@dataclass(frozen=True, slots=True)
class Unhelpful:
    """A library's warning on which no user of a run can act."""

    message: str
    """Regular expression that the message starts with."""
    category: type[Warning]
    """Its category."""
    reason: str
    """Why it says nothing to a user."""


UNHELPFUL = (
    Unhelpful(
        r"The `srun` command is available on your system but is not used",
        UserWarning,
        "Lightning asks for srun on any machine that has Slurm; a run started by hand needs none",
    ),
    Unhelpful(
        r"You have overridden `transfer_batch_to_device` in `LightningModule`",
        UserWarning,
        "meant: the training module counts a batch's FLOPs as it moves the batch",
    ),
    Unhelpful(
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",
        Warning,
        "Lightning's own call to torch",
    ),
    Unhelpful(
        r"The '.*' does not have many workers which may be a bottleneck",
        UserWarning,
        "Lightning guesses; the run measures how long it waits for data and says so (`data.workers`)",
    ),
    Unhelpful(
        r"The number of training batches \(\d+\) is smaller than the logging interval",
        UserWarning,
        "the run logs by itself (`tracking.every`)",
    ),
)
"""Warnings that are not shown, each with the reason."""

OWN_LOGGERS = ("framework", "__main__", "tools")
"""Loggers whose messages for people (level INFO) are shown."""
LIGHTNING_LOGGERS = ("lightning", "lightning.pytorch", "lightning.fabric")
"""Loggers to which Lightning attaches handlers; its tips have level INFO."""


class _Terminal(logging.Handler):
    """Writes above the progress bar, where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno >= logging.WARNING else "dim"
        console().print(Text(self.format(record), style=style))


def set_up_logging(role: str = "") -> None:
    """Send messages to the terminal or the log. Called by whatever a process starts with, and before each run of a
    sweep: the handler of the run before is replaced.

    Args:
        role: What the process is, where it is no run: "supervisor", "watch".
    """
    interactive = not role and on_terminal() and sys.stderr.isatty()
    handler = _Terminal() if interactive else logging.StreamHandler()
    handler.setFormatter(_Format(role, interactive))
    handler.addFilter(_is_shown)
    root = logging.getLogger()
    for former in [each for each in root.handlers if isinstance(each.formatter, _Format)]:
        root.removeHandler(former)
    root.addHandler(handler)
    for name in OWN_LOGGERS:
        logging.getLogger(name).setLevel(logging.INFO if role or is_first_rank() else logging.WARNING)
    logging.captureWarnings(True)
    for each in UNHELPFUL:
        warnings.filterwarnings("ignore", each.message, each.category)


def take_over_lightning() -> None:
    """Have Lightning's messages pass through the process's one handler: it attaches its own as it is imported."""
    for name in LIGHTNING_LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True


def _is_shown(record: logging.LogRecord) -> bool:
    """Whether a message is a warning, or one of the framework's own."""
    return record.levelno >= logging.WARNING or record.name.partition(".")[0] in OWN_LOGGERS


class _Format(logging.Formatter):
    """`10:02:11 message` on a terminal, else `2026-11-29 10:02:11 WARNING message`; a role precedes the message."""

    def __init__(self, role: str, short: bool) -> None:
        super().__init__()
        self.role = f"{role}: " if role else ""
        self.short = short

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if record.name == "py.warnings":  # of "FILE:LINE: Category: text\n  source line" the source line helps nobody
            message = message.strip().partition("\n")[0]
        if record.exc_info:
            message = f"{message}\n{self.formatException(record.exc_info)}"
        if self.short:
            level = "warning: " if record.levelno >= logging.WARNING else ""
            return f"{self.formatTime(record, '%H:%M:%S')} {level}{message}"
        level = f"{record.levelname} " if record.levelno >= logging.WARNING else ""
        return f"{self.formatTime(record, '%Y-%m-%d %H:%M:%S')} {level}{self.role}{message}"
