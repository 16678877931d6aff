"""Storage goes away for a while, a cached shard and one on its way are damaged: the run trains what the undisturbed one
did, each sample once.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from framework.data.shards.cache import CachePolicy
from framework.data.shards.storage import Patience
from framework.data.stream.ledger import first_difference, read_attempts, tally
from framework.data.stream.mixture import Mixture, Part, Shards
from tests.data.streams import Trial, pipeline, shares

if TYPE_CHECKING:
    from tests.data.shards.s3 import S3

pytest_plugins = ("tests.data.shards.s3",)

STEPS = 9
STALL_S = 5.0


def disturbed(
    seconds: float, workers: int, ahead: int, streams: dict[str, Path], s3: S3, processor: Any, folder: Path
) -> Trial:
    """Two attempts on streams in the bucket. Between them every cached shard goes bad; the second meets an outage and a
    bit that flips on the way.
    """
    parts = {
        name: Part(
            Shards(remote=s3.put(path, name), cache=str(folder / "cache" / name)), {"answer": 0.7, "caption": 0.3}
        )
        for name, path in streams.items()
    }
    patience = Patience(budget_s=10 * seconds + 60, absent_s=1.0, first_s=0.05, most_s=seconds / 3)
    how = pipeline(workers=workers, shard_prefetch_steps=ahead, cache=CachePolicy(patience=patience, stall_s=STALL_S))
    trial = Trial(Mixture(parts), how, processor, folder, STEPS)
    trial.attempt(last=1)

    from tests.data.shards.s3 import flip

    cached = sorted((folder / "cache").rglob("*.mds"))
    assert cached, "on a quick machine all of them: those that were fetched ahead"
    for shard in cached:
        flip(shard)
    s3.injure("shard.00002.mds.zstd", times=1, flips=50)
    s3.out_after(gets=9, seconds=seconds)
    trial.attempt()
    return trial


def check(trial: Trial, undisturbed: Trial, s3: S3) -> None:
    assert s3.injuries[0].times == 0, "the bit has flipped"
    assert s3.outages == 0, "the outage has been"
    attempts, expected = (read_attempts(run.folder / "ledger")["sft"] for run in (trial, undisturbed))
    assert first_difference(attempts, expected) is None
    assert {step: sorted(names) for step, names in trial.seen.items()} == {
        step: sorted(names) for step, names in undisturbed.seen.items()
    }
    found = tally(attempts)
    assert [(one.stream, one.trained) for one in found] == [(one.stream, one.trained) for one in tally(expected)]
    assert sum(one.trained for one in found) == STEPS * 8
    assert {(one.repeated, one.lost, one.quarantined) for one in found} == {(0, 0, 0)}


@pytest.fixture
def undisturbed(streams: dict[str, Path], processor: Any, tmp_path: Path) -> Trial:
    trial = Trial(shares(streams), pipeline(), processor, tmp_path / "undisturbed", STEPS)
    trial.folder.mkdir()
    trial.attempt()
    return trial


@pytest.mark.guarantee("An outage of storage is waited for, up to `data.cache.patience.budget_s`, and loses no sample")
@pytest.mark.parametrize(("workers", "ahead"), [(0, 0), (1, 2)])
@pytest.mark.slow
def test_a_run_outlives_an_outage_and_damage_and_trains_every_sample_once(
    workers: int,
    ahead: int,
    streams: dict[str, Path],
    undisturbed: Trial,
    s3: S3,
    processor: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "run").mkdir()
    start = time.monotonic()
    with caplog.at_level(logging.WARNING):
        trial = disturbed(3.0, workers, ahead, streams, s3, processor, tmp_path / "run")
    assert time.monotonic() - start > 3.0
    check(trial, undisturbed, s3)
    if not workers and not ahead:
        assert "differs from the index (size or hash); it is fetched again" in caplog.text
        assert "ConnectionClosedError" in caplog.text or "EndpointConnectionError" in caplog.text


@pytest.mark.slow
def test_a_run_outlives_an_outage_that_lasts_longer_than_a_worker_may_stall(
    streams: dict[str, Path], undisturbed: Trial, s3: S3, processor: Any, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    start = time.monotonic()
    trial = disturbed(3 * STALL_S, 2, 4, streams, s3, processor, tmp_path / "run")
    assert time.monotonic() - start > 3 * STALL_S
    check(trial, undisturbed, s3)


@pytest.mark.slow
def test_outages_that_come_again_and_again_are_each_waited_for(
    streams: dict[str, Path],
    s3: S3,
    processor: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    part = Part(Shards(remote=s3.put(streams["common"]), cache=str(tmp_path / "cache")), {"caption": 1.0})
    patience = Patience(budget_s=20.0, absent_s=1.0, first_s=0.05, most_s=0.1)
    run = Trial(Mixture({"common": part}), pipeline(cache=CachePolicy(patience=patience)), processor, tmp_path, steps=3)
    s3.out_after(gets=2, seconds=0.3, times=4)
    run.attempt()
    assert s3.outages == 0
    assert sum("try 2 in" in record.getMessage() for record in caplog.records) == 4
    (found,) = tally(read_attempts(tmp_path / "ledger")["sft"])
    assert (found.trained, found.repeated, found.lost) == (24, 0, 0)
