"""Logging as a process sets it up: whose messages are shown, how, and which warnings are not."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap

import pytest

from framework.run.logs import UNHELPFUL

SET_UP = "import logging, warnings\nfrom framework.run.logs import set_up_logging, take_over_lightning\n"
STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "


def _errors(code: str) -> list[str]:
    """The lines of standard error of a process that runs `code`."""
    program = SET_UP + textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stderr.splitlines()


@pytest.mark.guarantee("What a run prints hides no warning but those listed with a reason")
def test_our_messages_and_all_warnings_are_shown_and_libraries_tips_are_not() -> None:
    lines = _errors(
        """
        set_up_logging()
        logging.getLogger("lightning.pytorch").setLevel(logging.INFO)  # as it does when it is imported
        logging.getLogger("lightning.pytorch").addHandler(logging.StreamHandler())
        take_over_lightning()
        logging.getLogger("framework.data").info("our news")
        logging.getLogger("framework.data").warning("our warning")
        logging.getLogger("lightning.pytorch.utilities.rank_zero").info("Tip: install litlogger")
        logging.getLogger("lightning.pytorch.utilities.rank_zero").warning("their warning")
        """
    )
    assert [re.sub(f"^{STAMP}", "", line) for line in lines] == [
        "our news",
        "WARNING our warning",
        "WARNING their warning",
    ]


def test_a_sweep_sets_logging_up_for_each_run_and_messages_come_once() -> None:
    lines = _errors(
        """
        set_up_logging()
        set_up_logging()
        logging.getLogger("framework.data").info("our news")
        """
    )
    assert len(lines) == 1


def test_a_warning_takes_one_line_unless_it_is_listed() -> None:
    lines = _errors(
        """
        set_up_logging()
        warnings.warn("The `srun` command is available on your system but is not used. HINT", UserWarning)
        warnings.warn("something is wrong", UserWarning)
        """
    )
    assert len(lines) == 1
    assert re.fullmatch(f"{STAMP}WARNING .*: UserWarning: something is wrong", lines[0])


def test_a_role_is_named_in_each_line() -> None:
    (line,) = _errors("set_up_logging('supervisor')\nlogging.getLogger('__main__').info('attempt 2')")
    assert re.fullmatch(f"{STAMP}supervisor: attempt 2", line)


@pytest.mark.guarantee("What a run prints hides no warning but those listed with a reason")
def test_no_filter_hides_more_than_it_names() -> None:
    for each in UNHELPFUL:
        assert each.reason
        assert len(re.sub(r"\W", "", each.message)) > 20, f"{each.message}: too short to name one warning"
        assert not re.match(each.message, "A warning about something else")
