"""Predictions of a trained run: killed anywhere and on any number of ranks, each sample has exactly one row."""

from __future__ import annotations

import functools
import os
import shutil
import time
from pathlib import Path

import pyarrow.parquet
import pytest

from framework.__main__ import main
from framework.evaluation.predictions import read_parts
from tests.processes import REPOSITORY, run, run_ranks, started

OLD = REPOSITORY / "tests" / "fixtures" / "old_tree" / "runs" / "stopped_in_rl"
SAMPLES = 12
pytestmark = pytest.mark.timeout(300)


def _predict(folder: Path, *words: str) -> int:
    """`recipe=predict` of the old run with small parts; the built-in world's scenes lie in a cache that all share."""
    os.chdir(folder)
    common = ["recipe=predict", "task.run=old", "paths.runs=runs", "paths.cache=cache", "task.part=2",
              f"sources.world_held_out.scenes={SAMPLES}", "task.tasks={drive: 64, answer: 8}"]  # fmt: skip
    return main([*common, *words])


def _untimed(folder: Path) -> list[dict[str, object]]:
    """The rows without what no two jobs share: their times."""
    rows = read_parts(folder)
    for row in rows:
        row["seconds"] = 0.0
        row["answers"] = [answer | {"seconds": 0.0} for answer in row["answers"]]
    return rows


@pytest.mark.slow
@pytest.mark.guarantee("Predictions, killed and resumed on any number of ranks, have exactly one row a sample")
def test_killed_and_resumed_each_sample_has_one_row_as_of_two_ranks(tmp_path: Path) -> None:
    shutil.copytree(OLD, tmp_path / "old")
    parts = tmp_path / "runs" / "predict" / "predictions"
    with started(functools.partial(_predict, tmp_path)) as job:
        deadline = time.monotonic() + 120
        while len(list(parts.glob("part-*.parquet"))) < 2:
            assert time.monotonic() < deadline, job.complaints.read_text()[-2000:]
            assert job.process.exitcode is None, job.complaints.read_text()[-2000:]
            time.sleep(0.005)
        job.kill()
    before = {file.name: file.read_bytes() for file in parts.glob("part-*.parquet")}
    assert 2 <= len(before) < SAMPLES // 2, "the job was killed in the middle"
    done = run(functools.partial(_predict, tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    assert {name: (parts / name).read_bytes() for name in before} == before, "nothing is predicted twice"
    rows = _untimed(parts)
    assert [row["sample"] for row in rows] == [f"0/{number}" for number in range(SAMPLES)]
    assert all(len(row["plan"] or ()) == len(row["controls"] or ()) == 20 for row in rows)  # type: ignore[arg-type]
    assert "worst 1" in (parts.parent / "predictions.html").read_text()
    assert pyarrow.parquet.read_table(parts).num_rows == SAMPLES, "the folder reads as one table"

    run_ranks(2, functools.partial(_predict, tmp_path, "run.name=two"))
    two = _untimed(tmp_path / "runs" / "two" / "predictions")
    assert [row["sample"] for row in two] == [row["sample"] for row in rows]
    assert two == rows

    other = run(functools.partial(_predict, tmp_path, "task.scenes=4"))
    assert other.returncode != 0
    assert "holds predictions with other scenes; give run.folder a new folder" in other.stderr
