"""Ranks of tests end well, or by name."""

from __future__ import annotations

import functools
import os
import signal
import time
from pathlib import Path

import pytest

from tests.processes import CrashError, run_ranks

pytestmark = pytest.mark.slow


def _crash(folder: Path, times: int) -> None:
    """The second rank crashes so often; the first is lost then, and says so."""
    mine, gone = folder / os.environ["RANK"], folder / "gone"
    mine.write_text(mine.read_text() + "x" if mine.exists() else "x")
    starts = len(mine.read_text())
    if starts <= times and os.environ["RANK"] == "1":
        gone.touch()
        os.kill(os.getpid(), signal.SIGSEGV)
    while starts <= times and not gone.exists():
        time.sleep(0.01)
    if starts <= times:
        raise ConnectionResetError("lost the second rank")
    print("starts", starts)


def test_ranks_that_crash_are_started_again_once(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="2 ranks are started again: rank .* ended by SIGSEGV"):
        assert run_ranks(2, functools.partial(_crash, tmp_path, 1)) == ["starts 2\n"] * 2
    for file in tmp_path.iterdir():
        file.unlink()
    with pytest.raises(CrashError), pytest.warns(UserWarning, match="started again"):
        run_ranks(2, functools.partial(_crash, tmp_path, 2))


def test_an_error_of_a_rank_is_told_and_not_tried_again() -> None:
    with pytest.raises(AssertionError, match="KeyError: 'no such rank'"):
        run_ranks(1, functools.partial(dict.__getitem__, {}, "no such rank"))
