"""The endless loader: one item is one optimizer step, and the cursor counts trained samples (contracts 1 and 2)."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from framework.data.render.chat import ChatRenderer
from framework.data.render.sample import Sample
from framework.data.render.tasks import Task
from framework.data.shards.quarantine import Quarantine, QuarantinedSample
from framework.data.stream.address import Address
from framework.data.stream.cursor import Cursor, RankSlice, start_cursor, steps_from
from framework.data.stream.dataset import LoadedStep, StepDataset
from framework.data.stream.ledger import Ledger
from framework.data.stream.mixture import OpenMixture
from framework.data.stream.prefetch import ShardPrefetcher
from framework.data.stream.workers import prepare_steps
from framework.scene.types import SceneError

log = logging.getLogger(__name__)


class StepLoader:
    """Yields this rank's slice of every optimizer step, endlessly, batched by the dataset's `Batcher`.

    Each yielded step's cursor stays pending until the optimizer step is done. Then `commit` makes the oldest pending
    cursor the state that `state_dict` returns, and appends the step's samples to the ledger. Samples that were
    prefetched or in flight when a run dies are therefore trained by the next attempt, exactly once.

    Args:
        dataset: Reads, renders and batches the samples.
        rank_slice: This rank's share of each global batch.
        quarantine: Counts the samples that cannot be used.
        open_ledger: Opens the ledger of trained samples, given the changes of the mixture since the checkpoint. None
            on ranks that train the same samples as another rank.
        workers: Processes that prepare steps; 0 prepares them in this process.
        prefetch_factor: Steps that each worker prepares in advance.
        shard_prefetch_steps: How many steps ahead shards are fetched; 0 fetches a shard on its first read.
    """

    def __init__(
        self,
        dataset: StepDataset,
        rank_slice: RankSlice,
        quarantine: Quarantine,
        open_ledger: Callable[[list[str]], Ledger] | None = None,
        workers: int = 0,
        prefetch_factor: int = 2,
        shard_prefetch_steps: int = 0,
    ) -> None:
        self.mixture = dataset.mixture
        self.dataset = dataset
        self.rank_slice = rank_slice
        self.quarantine = quarantine
        self.open_ledger = open_ledger
        self.workers = workers
        self.prefetch_factor = prefetch_factor
        self.committed, self.changes = start_cursor(self.mixture, rank_slice.lanes)
        self.pending: deque[_PendingStep] = deque()
        self.ledger: Ledger | None = None
        self.prefetcher: ShardPrefetcher | None = None
        if shard_prefetch_steps:
            self.prefetcher = ShardPrefetcher(self.mixture, rank_slice, shard_prefetch_steps)
        self.metrics: dict[str, float] = {}

    @property
    def renderer(self) -> ChatRenderer:
        """The renderer of the samples."""
        return self.dataset.renderer

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the samples (transformers)."""
        return self.renderer.tokenizer

    @property
    def tasks(self) -> Mapping[str, Task]:
        """The recipe's tasks by name."""
        return self.mixture.tasks

    @property
    def global_batch(self) -> int:
        """Samples per step over all ranks."""
        return self.rank_slice.global_batch

    def sample(self, address: Address) -> Sample | QuarantinedSample:
        """Reads and renders the sample at `address`, or returns the reason why it cannot be used."""
        return self.dataset.sample(address)

    def start_prefetch(self) -> None:
        """Starts to fetch the next steps' shards, so that they arrive while the model is built."""
        if self.prefetcher is not None:
            self.prefetcher.start(self.committed)

    def __iter__(self) -> Iterator[list[Any]]:
        """Yields each step's batches, starting at the committed cursor.

        Raises `SceneError` when storage fails, when more samples are quarantined than allowed, and when the first step
        has no sample that can be used.
        """
        self.pending.clear()
        if self.prefetcher is not None and self.prefetcher.process is None:
            self.start_prefetch()
        sampler = _StepSampler(self.mixture, self.committed, self.rank_slice)
        prepared = prepare_steps(self.dataset, sampler, self.workers, self.prefetch_factor)
        previous: list[Any] = []
        while True:
            start = time.perf_counter()
            try:
                step = next(prepared)
            except SceneError as error:  # torch's traceback is a cycle, which would keep its workers alive
                raise error.with_traceback(None) from None
            waited = time.perf_counter() - start
            addresses, cursor = sampler.dispatched.popleft()
            self.quarantine.count(len(addresses), [sample for _, sample in step.quarantined])
            self._measure(step, waited)
            unused = frozenset(address for address, _ in step.quarantined)
            self.pending.append(_PendingStep(addresses, unused, cursor))
            if self.prefetcher is not None:
                self.prefetcher.advance(cursor.step)
            previous = step.batches or previous
            if not previous:
                reason = step.quarantined[-1][1].reason
                raise SceneError(f"all samples of the first step were quarantined; the last: {reason}")
            yield step.batches or self.dataset.batcher.idle(previous)

    def commit(self, step: int, slices: int = 1) -> None:
        """Records that optimizer step `step` of the curriculum trained the oldest `slices` pending items."""
        for _ in range(slices):
            trained = self.pending.popleft()
            self.committed = trained.cursor
            if self.open_ledger is not None:
                if self.ledger is None:
                    self.ledger = self.open_ledger(self.changes)
                self.ledger.append(step, trained.addresses, trained.quarantined)

    def state_dict(self) -> dict[str, Any]:
        """Flushes the ledger, and returns the cursor after the last committed step."""
        if self.ledger is not None:
            self.ledger.flush()
        return self.committed.state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a committed cursor. Takes effect at the next `iter`."""
        self.committed, self.changes = start_cursor(self.mixture, self.rank_slice.lanes, Cursor.of(state))
        for change in self.changes:
            log.warning("the mixture changed since the checkpoint: %s", change)
        if self.prefetcher is not None:
            self.prefetcher.start(self.committed)

    def close(self) -> None:
        """Stops the shard prefetcher."""
        if self.prefetcher is not None:
            self.prefetcher.stop()

    def _measure(self, step: LoadedStep, waited: float) -> None:
        self.metrics = {
            "data/wait_s": waited,
            "data/fetch_s": step.fetch_s,
            "data/render_s": step.render_s,
            "data/padding": step.padding / max(1, step.positions),
            "data/refused": float(len(self.quarantine)),
        }


class _PendingStep(NamedTuple):
    """A step that was yielded and not yet committed."""

    addresses: list[Address]
    quarantined: frozenset[Address]
    cursor: Cursor


class _StepSampler:
    """Yields the addresses of this rank's slice of every step, and queues them in `dispatched`, with the cursor after
    the step, for the loader to match with the workers' results.
    """

    def __init__(self, mixture: OpenMixture, cursor: Cursor, rank_slice: RankSlice) -> None:
        self.steps = steps_from(mixture, cursor, rank_slice)
        self.dispatched: deque[tuple[list[Address], Cursor]] = deque()

    def __iter__(self) -> Iterator[list[Address]]:
        for addresses, cursor in self.steps:
            self.dispatched.append((addresses, cursor))
            yield addresses
