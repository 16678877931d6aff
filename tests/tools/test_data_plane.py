"""The data-plane benchmark's sides all read what was written, once each: a pass over a handful of scenes."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from framework.data.shards.record import COLUMNS
from tests.processes import run
from tools.bench.data_plane import ReadPass, Size, apart, figures_of, make_record, measure, table
from tools.bench.rivals import RIVALS, WORK, OurLoader, Place, Reading, Record, StorageSide, installed

SIDES: dict[str, StorageSide] = {"ours": OurLoader(), **RIVALS}
FILE_BYTES = 1 << 19


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    return [make_record(seed) for seed in range(8)]


@pytest.mark.slow
@pytest.mark.parametrize("name", SIDES)
def test_a_pass_reads_every_record_once(name: str, records: list[dict[str, Any]], tmp_path: Path) -> None:
    side = SIDES[name]
    if installed(side) is None:
        pytest.skip(f"{side.package} is not installed")
    side.write(records, tmp_path / "stored", FILE_BYTES)
    files = sorted(path.name for path in (tmp_path / "stored").iterdir())
    place = Place(str(tmp_path / "stored"), tmp_path / "cache", files)
    done = run(functools.partial(_read, name, records, place))
    assert done.returncode == 0, done.stderr[-3000:]


def _read(name: str, records: list[dict[str, Any]], place: Place) -> None:
    """Passes in forks, as the benchmark's are, of a process that runs no threads: what tests before this one left
    running here, a fork would wait for.
    """
    side, cores = SIDES[name], sorted(os.sched_getaffinity(0))[:2]
    for mode, work in WORK.items():
        found = apart(functools.partial(measure, side, place, Reading(2, 2, work), Size(8, 1)), cores)
        assert isinstance(found, ReadPass), f"{mode}: {found}"
        assert found.exact
        assert found.samples_per_s > 0
    assert apart(functools.partial(_delivered, side, place), cores) == {record["id"]: record for record in records}


def _delivered(side: StorageSide, place: Place) -> dict[str, Record]:
    batches: Sequence[list[Record]] = list(side.batches(place, Reading(2, 2, WORK["raw"]), 8))
    return {record["id"]: {name: record[name] for name in COLUMNS} for batch in batches for record in batch}


def test_what_failed_is_reported_with_what_was_measured() -> None:
    fast, slow = ReadPass(0.1, 300.0, 1.0, 0.0, True), ReadPass(0.2, 100.0, 3.0, 0.0, True)
    figures = figures_of(
        {
            ("raw", "local", "ours"): [fast, slow, fast],
            ("raw", "local", "slow"): [slow, "RuntimeError: no"],
            ("raw", "local", "none"): ["RuntimeError: no"],
        }
    )["raw"]["local"]
    assert (figures["ours"]["samples_per_s"], figures["slow"]["ours_to_this"]) == (300.0, 3.0)
    assert figures["none"] | {"failed": ["RuntimeError: no"], "samples_per_s": None} == figures["none"]
    assert "RuntimeError: no" in table({"raw": {"local": figures}})
