"""Files that are whole or absent, and the one process of several that creates a file."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from framework.run.files import (
    append_line,
    create_text,
    read_json,
    read_lines,
    read_records,
    replacing,
    write_json,
    write_text,
)


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


@pytest.mark.slow
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


RECORDS = [{"event": "start", "attempt": 1}, {"event": "end", "attempt": 1, "outcome": "überlaufen"}]
WHOLE = "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in RECORDS).encode()


@pytest.mark.fault("files whose last line is cut")
@pytest.mark.parametrize("zeros", [0, 1, 4096])
def test_a_file_of_records_survives_a_cut_at_every_byte(tmp_path: Path, zeros: int) -> None:
    """Every record that was wholly written is there, before and after the next append, and no other."""
    file = tmp_path / "attempts.jsonl"
    for cut in range(len(WHOLE) + 1):
        file.write_bytes(WHOLE[:cut] + bytes(zeros))
        lines = WHOLE.splitlines()
        saved = [json.loads(line) for n, line in enumerate(lines) if cut >= len(b"\n".join(lines[: n + 1]))]
        assert read_records(file) == saved
        append_line(file, '{"attempt": 2}')
        assert read_records(file) == [*saved, {"attempt": 2}]
        assert file.read_bytes().count(b"\n") == len(saved) + 1  # other programs find whole lines only


@pytest.mark.fault("files whose last line is cut")
def test_a_file_of_lines_survives_a_cut_at_every_byte(tmp_path: Path) -> None:
    """A cut number is not taken for a shorter one."""
    file, whole = tmp_path / "metrics.csv", b"1,0.125\r\n2,0.25\r\n"
    for cut in range(len(whole) + 1):
        file.write_bytes(whole[:cut])
        saved = ["1,0.125", "2,0.25"][: whole[:cut].count(b"\n")]
        assert read_lines(file) == saved
        append_line(file, "3,0.5")
        assert read_lines(file) == [*saved, "3,0.5"]


def test_a_damaged_line_in_the_middle_costs_that_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "failures.jsonl"
    file.write_bytes(b'{"attempt": 1}\n{"att\n' + bytes(512) + b'{"attempt": 3}\n"text"\n')
    assert read_records(file) == [{"attempt": 1}, {"attempt": 3}]
    assert f"{file}: 2 of 4 lines are cut or damaged" in caplog.text


def _append(file: Path, number: int) -> None:
    for _ in range(50):
        append_line(file, json.dumps({"number": number, "pad": "x" * 5000}))


def test_processes_append_to_one_file_whose_last_line_is_cut(tmp_path: Path) -> None:
    file = tmp_path / "phases.jsonl"
    file.write_text('{"number": 9, "pad')
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        pool.starmap(_append, [(file, number) for number in range(3)])
    assert sorted(record["number"] for record in read_records(file)) == sorted([0, 1, 2] * 50)


@pytest.mark.parametrize("text", ['{"broad": ', "[" * 100_000])
def test_what_is_not_json_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match=r"results\.json: .* is not JSON; restore the file"):
        read_json(tmp_path / "results.json")
