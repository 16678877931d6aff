"""What a run shows people, on a terminal and in a log."""

from __future__ import annotations

import io

import pytest

from framework.run.console import duration, on_terminal, progress_bar, show_rows, show_table, show_title


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (59.6, "1 min"), (200, "3 min 20 s"), (7200, "2 h"), (18120, "5 h 2 min"), (273600, "3 d 4 h")],
)
def test_durations_have_two_units_at_most(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_a_log_gets_plain_lines_whatever_their_length(capsys: pytest.CaptureFixture[str]) -> None:
    folder = "outputs/runs/" + 200 * "x"
    show_title("demo", "a small run")
    show_rows({"folder": folder, "length": "[3] steps"})
    show_table("a  b\n1  2")
    assert capsys.readouterr().out == (
        f"demo  a small run\n  folder    {folder}\n  length    [3] steps\n\na  b\n1  2\n\n"
    )


def test_a_log_gets_whole_lines_of_tables_and_aligned_rows(capsys: pytest.CaptureFixture[str]) -> None:
    wide = "  ".join(f"column {number}" for number in range(30))
    show_table(wide)
    show_rows({"results of untrained": "step 0", "report": "r"})
    assert capsys.readouterr().out == f"\n{wide}\n\n  results of untrained  step 0\n  report                r\n"


def test_other_ranks_print_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    show_title("demo", "")
    show_rows({"folder": "x"})
    show_table("a")
    assert capsys.readouterr().out == ""


def test_a_pipe_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert not on_terminal()
    with progress_bar("phase", 3) as bar:
        assert bar is None
