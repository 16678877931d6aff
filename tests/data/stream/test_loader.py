"""The endless loader when samples cannot be used, when storage fails or is slow, and when nothing is wrong for long."""

from __future__ import annotations

import gc
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from framework.data.shards.cache import CachePolicy
from framework.data.shards.quarantine import QuarantinePolicy
from framework.data.shards.storage import Patience
from framework.data.stream.loader import StepLoader
from framework.data.stream.mixture import Mixture, Part, Shards
from framework.scene.batch import IGNORE_INDEX
from framework.scene.types import SceneError
from tests.data.streams import lengths, pipeline, shares

if TYPE_CHECKING:
    from tests.data.shards.s3 import S3

pytest_plugins = ("tests.data.shards.s3",)

QUICK = CachePolicy(patience=Patience(budget_s=1.0, absent_s=0.1, first_s=0.02, most_s=0.1), stall_s=5.0)
METRICS = {"data/wait_s", "data/fetch_s", "data/render_s", "data/padding", "data/refused"}


@pytest.fixture
def loader_of(processor: Any, tmp_path: Path) -> Iterator[Callable[..., StepLoader]]:
    """A loader of a mixture by what is changed of the pipeline; closed in the end."""
    opened: list[StepLoader] = []

    def make(mixture: Mixture, world: int = 1, rank: int = 0, **changes: Any) -> StepLoader:
        where: dict[str, Any] = {"stage": "sft", "samples": 8000, "seed": 7, "folder": tmp_path / "run"}
        opened.append(pipeline(**changes).loader(mixture, processor, **where, world=world, rank=rank))
        return opened[-1]

    yield make
    for loader in opened:
        loader.close()
    gc.collect()  # ends the workers of an iteration that raised


def remote(where: str, cache: Path) -> Mixture:
    return Mixture({"only": Part(Shards(remote=where, cache=str(cache)), {"answer": 0.7, "caption": 0.3})})


def fetching(loader: StepLoader) -> Any:
    """The process that fetches shards."""
    assert loader.prefetcher is not None
    return loader.prefetcher.process


def ids(batches: list[Any]) -> list[str]:
    return [name for batch in batches for name in batch["sample_ids"]]


# QuarantinedSample samples


def test_a_rank_whose_samples_are_all_refused_repeats_a_batch_that_teaches_nothing(
    loader_of: Callable[..., StepLoader], streams: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other ranks wait for its gradient, whatever its samples lack."""
    loader = loader_of(shares({"rare": streams["rare"]}), world=4, rank=2)
    render = loader.renderer.render
    refused: list[bool] = []

    def refuses(*arguments: Any) -> Any:
        if refused:
            raise SceneError("refused for the test")
        return render(*arguments)

    monkeypatch.setattr(loader.renderer, "render", refuses)
    steps = iter(loader)
    (taught,) = next(steps)
    assert (taught["labels"] != IGNORE_INDEX).any()
    refused.append(True)
    (repeated,) = next(steps)
    assert repeated["input_ids"].equal(taught["input_ids"])
    assert (repeated["labels"] == IGNORE_INDEX).all()
    refused.clear()
    (taught,) = next(steps)
    assert (taught["labels"] != IGNORE_INDEX).any()
    assert loader.metrics["data/refused"] == 2


def test_a_run_whose_first_step_is_refused_as_a_whole_says_why(
    loader_of: Callable[..., StepLoader], streams: dict[str, Path]
) -> None:
    with pytest.raises(SceneError, match=r"all samples of the first step were quarantined; the last: .*max_length"):
        next(iter(loader_of(shares(streams), max_length=8)))


@pytest.mark.parametrize("workers", [0, 1])
def test_more_refusals_than_allowed_stop_the_run_and_name_the_last(
    workers: int, loader_of: Callable[..., StepLoader], streams: dict[str, Path], tmp_path: Path
) -> None:
    loader = loader_of(
        shares({"rare": streams["rare"]}), max_length=8, quarantine=QuarantinePolicy(0.1, 30), workers=workers
    )
    with pytest.raises(
        SceneError,
        match=r"8 of 8 samples quarantined, data\.quarantine\.limit allows a share of 0\.1; the last was rare/\d/\d: ",
    ) as told:
        next(iter(loader))
    file = tmp_path / "run" / "refused.rank-0.jsonl"
    assert str(file) in str(told.value)
    assert len(file.read_text().splitlines()) == 8


# Storage that fails


@pytest.mark.guarantee("Streams never end silently: an unreadable shard raises")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_failure_of_storage_reaches_the_trainer_with_its_text(
    workers: int, loader_of: Callable[..., StepLoader], streams: dict[str, Path], tmp_path: Path
) -> None:
    """It does not end the iteration, as if all had been trained."""
    stream = tmp_path / "stream"
    stream.symlink_to(streams["common"])
    loader = loader_of(remote(str(stream), tmp_path / "cache"), workers=workers, cache=QUICK)
    stream.unlink()
    with pytest.raises(SceneError, match=r"shard\.\d+\.mds.*: is missing, though the index names it; write or copy"):
        next(iter(loader))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.fast_cases(1)
def test_an_outage_that_lasts_reaches_the_trainer_with_its_text(
    workers: int, loader_of: Callable[..., StepLoader], streams: dict[str, Path], s3: S3, tmp_path: Path
) -> None:
    loader = loader_of(remote(s3.put(streams["common"]), tmp_path / "cache"), workers=workers, cache=QUICK)
    s3.out()
    with pytest.raises(SceneError, match=r"no answer within data\.cache\.patience \(1 s\)"):
        next(iter(loader))


# What is measured


@pytest.mark.slow
@pytest.mark.guarantee("Waiting for data is measured at each step, and a warning names the remedy")
@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_measured_is_there_and_adds_up(
    workers: int, loader_of: Callable[..., StepLoader], streams: dict[str, Path], s3: S3, tmp_path: Path
) -> None:
    loader = loader_of(remote(s3.put(streams["common"]), tmp_path / "cache"), workers=workers)
    s3.injure("zstd", wait_s=0.2)
    start, cold = time.perf_counter(), 0.0
    for step, _ in enumerate(loader):
        found = loader.metrics
        assert set(found) == METRICS
        cold += found["data/fetch_s"]
        assert found["data/render_s"] > 0
        assert 0 < found["data/padding"] < 0.5
        assert found["data/refused"] == 0
        if workers == 0:
            assert found["data/wait_s"] >= found["data/fetch_s"] + found["data/render_s"]
        if step == 3:  # a pass and a part of the next: all shards are here
            break
    assert 0.2 * s3.asked("zstd") <= cold < time.perf_counter() - start + 1e-3
    next(steps := iter(loader))
    next(steps)
    assert loader.metrics["data/fetch_s"] < 0.1


@pytest.mark.parametrize("pack", [400, 800])
@pytest.mark.slow
def test_packed_rows_are_nearly_full_and_never_too_long(
    pack: int, loader_of: Callable[..., StepLoader], streams: dict[str, Path]
) -> None:
    padding = {}
    for budget in (None, pack):
        loader = loader_of(shares(streams), global_batch=64, micro_batch=8, pack=budget)
        filled = positions = 0
        for step, batches in enumerate(loader):
            assert max(lengths(batches)) <= pack
            assert len(ids(batches)) == 64
            filled += sum(lengths(batches))
            positions += sum(batch["input_ids"].numel() for batch in batches)
            if step == 4:
                break
        padding[budget] = 1 - filled / positions
    assert padding[pack] < 0.03 < padding[None]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_steps(loader_of: Callable[..., StepLoader], streams: dict[str, Path]) -> None:
    """The slope over the second half of 300 steps: what is kept of each step would be seen, what a warm start takes is
    not.
    """
    page = resource.getpagesize()
    loader = loader_of(shares(streams), global_batch=2, shuffle_block=16)
    resident = []
    for step, _ in enumerate(loader, start=1):
        loader.commit(step)
        if step % 30 == 0:
            loader.state_dict()
            gc.collect()
            resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * page)
        if step == 300:
            break
    half = np.array(resident[len(resident) // 2 :])
    slope = np.polyfit(30 * np.arange(len(half)), half, 1)[0]
    assert slope < 4096, f"{slope:.0f} bytes a step"
    assert len(loader.pending) == 0


# Fetching ahead


@pytest.mark.slow
def test_shards_that_were_fetched_ahead_are_not_waited_for(
    loader_of: Callable[..., StepLoader], streams: dict[str, Path], s3: S3, tmp_path: Path
) -> None:
    from tests.data.shards.s3 import wait_until

    where = s3.put(streams["common"])
    shards = sum(1 for _ in streams["common"].rglob("*.zstd"))
    s3.injure("zstd", wait_s=0.3)
    cold = loader_of(remote(where, tmp_path / "cold"))
    next(iter(cold))
    assert cold.metrics["data/fetch_s"] > 1.0

    s3.gets.clear()
    loader = loader_of(remote(where, tmp_path / "warm"), shard_prefetch_steps=4)
    loader.start_prefetch()
    wait_until(lambda: len(list((tmp_path / "warm").rglob("*.mds.verified"))) == shards)
    next(iter(loader))
    assert loader.metrics["data/fetch_s"] < 0.1
    assert s3.asked("zstd") == shards, "each was fetched once"
    process = fetching(loader)
    assert process.is_alive()
    loader.close()
    assert process.exitcode == -signal.SIGKILL
    loader.close()


def test_fetching_keeps_its_distance_and_goes_on_with_training(
    loader_of: Callable[..., StepLoader], streams: dict[str, Path], s3: S3, tmp_path: Path
) -> None:
    loader = loader_of(remote(s3.put(streams["common"]), tmp_path / "cache"), global_batch=2, shard_prefetch_steps=2)
    loader.start_prefetch()
    s3.wait_for("zstd", 2)
    time.sleep(0.5)
    early = s3.asked("zstd")
    assert early <= 4, "two steps of two samples"
    steps = iter(loader)
    for _ in range(3):
        next(steps)
    s3.wait_for("zstd", early + 1)


def test_fetching_ends_though_the_trainer_has_taken_over_the_signals(
    loader_of: Callable[..., StepLoader], streams: dict[str, Path], s3: S3, tmp_path: Path
) -> None:
    """Lightning's handler of SIGTERM is inherited by what is forked while it fits."""
    told = tmp_path / "told"
    before = signal.signal(signal.SIGTERM, lambda *_: told.write_text(str(os.getpid())))
    try:
        loader = loader_of(remote(s3.put(streams["common"]), tmp_path / "cache"), shard_prefetch_steps=2)
        loader.start_prefetch()
        s3.wait_for("zstd")
        process = fetching(loader)
        os.kill(process.pid, signal.SIGTERM)
        process.join(10)
        assert process.exitcode == -signal.SIGTERM
        loader.start_prefetch()
        loader.close()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not told.exists()


@pytest.mark.slow
def test_what_cannot_be_fetched_ahead_is_told_where_it_is_read(
    loader_of: Callable[..., StepLoader], streams: dict[str, Path], s3: S3, tmp_path: Path
) -> None:
    loader = loader_of(remote(s3.put(streams["common"]), tmp_path / "cache"), cache=QUICK, shard_prefetch_steps=2)
    s3.injure("zstd", status=404)
    loader.start_prefetch()
    s3.wait_for("zstd")
    with pytest.raises(SceneError, match="is missing, though the index names it"):
        next(iter(loader))


@pytest.mark.slow
def test_a_loader_that_resumes_fetches_from_there_on(
    loader_of: Callable[..., StepLoader], streams: dict[str, Path], s3: S3, tmp_path: Path
) -> None:
    """The newest state wins over where fetching had started."""
    where = s3.put(streams["common"])
    first = loader_of(remote(where, tmp_path / "first"), global_batch=2)
    steps = iter(first)
    for step in range(1, 10):
        next(steps)
        first.commit(step)
    s3.gets.clear()
    resumed = loader_of(remote(where, tmp_path / "second"), global_batch=2, shard_prefetch_steps=1)
    resumed.load_state_dict(first.state_dict())
    wanted = ids(next(steps))
    s3.wait_for("zstd")
    fetched = next(key for key in s3.gets if key.endswith("zstd"))
    assert fetched in [f"stream/part-00000/shard.{int(name.split('-')[1]) // 2:05d}.mds.zstd" for name in wanted]
    assert ids(next(iter(resumed))) == wanted
