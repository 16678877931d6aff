"""Files that are whole or absent, and the one process of several that creates a file."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from framework.run.files import append_line, create_text, read_json, replacing, write_json, write_text


def test_a_file_is_replaced_whole_and_nothing_is_left_next_to_it(tmp_path: Path) -> None:
    file = tmp_path / "new" / "state.json"
    assert read_json(file) is None
    for value in ({"step": 1}, {"step": 2, "name": "é"}):
        write_json(file, value)
        assert read_json(file) == value
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("durable", [True, False])
def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, durable: bool) -> None:
    file = tmp_path / "table.npy"

    def fail_halfway() -> None:
        with replacing(file, durable) as fresh:
            fresh.write_text("half of the n")
            assert file.read_text() == "old"
            raise ZeroDivisionError

    write_text(file, "old", durable)
    with pytest.raises(ZeroDivisionError):
        fail_halfway()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("table.npy", "old")]


def test_a_fresh_file_escapes_the_patterns_that_look_for_files(tmp_path: Path) -> None:
    with replacing(tmp_path / "attempt-1.json") as fresh:
        fresh.write_text("{}")
        assert not list(tmp_path.glob("attempt-*"))
    assert [path.name for path in tmp_path.glob("attempt-*.json")] == ["attempt-1.json"]


def _create(file: Path, text: str) -> bool:
    return create_text(file, text)


def test_of_several_processes_one_creates_a_file(tmp_path: Path) -> None:
    file = tmp_path / "claim"
    texts = [str(number) * 1000 for number in range(4)]
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        created = pool.starmap(_create, [(file, text) for text in texts])
    assert created.count(True) == 1
    assert file.read_text() == texts[created.index(True)]
    assert list(tmp_path.iterdir()) == [file]


def test_lines_are_appended_in_order(tmp_path: Path) -> None:
    file = tmp_path / "runs" / "attempts.jsonl"
    for line in ("one", "zwei ü", "three"):
        append_line(file, line)
    assert file.read_text(encoding="utf-8") == "one\nzwei ü\nthree\n"
