"""The endless loader: one item is one optimizer step, and its cursor counts what was trained (contracts 1 and 2)."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import gc
import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.context import ForkContext
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from framework.data.render.chat import ChatRenderer, Rendered
from framework.data.render.collate import collate, collate_packed, collate_shared_prefix
from framework.data.render.packing import pack
from framework.data.shards.quarantine import Quarantine, Refused
from framework.data.stream.cursor import Cursor, Split, begin, steps
from framework.data.stream.ledger import Ledger
from framework.data.stream.mixture import Address, OpenMixture
from framework.data.stream.prefetch import Ahead
from framework.run.parent_death import end_with_parent
from framework.scene.batch import IGNORE_INDEX, MicroBatch
from framework.scene.types import Scene, SceneError

log = logging.getLogger(__name__)

PIPE_BYTES = 1 << 20


class Sample(NamedTuple):
    """A rendered sample with the scene and the task that it came from; in a stream also its address."""

    rendered: Rendered
    scene: Scene
    task: str
    address: Address | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A rank's share of a step: its micro-batches (or prompts), the samples that could not be used, and what preparing
    took.

    `fetch_s` was spent waiting for shards, `render_s` on decoding and rendering. `padding` are positions of the
    micro-batches that hold nothing, of `positions` in all.
    """

    batches: list[Any]
    refused: list[tuple[Address, Refused]]
    fetch_s: float
    render_s: float
    padding: int
    positions: int


class Shape(Protocol):
    """What a rank's share of a step is made into. `generation`: samples are rendered up to where the assistant begins
    to speak.
    """

    generation: bool

    def batches(self, renderer: ChatRenderer, samples: list[Sample]) -> list[Any]:
        """What the loader yields of a share's samples."""
        ...

    def idle(self, batches: list[Any]) -> list[Any]:
        """What it yields where all samples of a share were refused, given those of an earlier one."""
        ...

    def filled(self, batches: list[Any]) -> tuple[int, int]:
        """Positions that hold something, and all positions."""
        ...


class Cut:
    """How a rank's share is cut into micro-batches of `micro_batch` rows: a sample a row, padded to the longest; or,
    with `packed` (tokens), as many samples a row as that holds.
    """

    generation = False

    def __init__(self, micro_batch: int, packed: int | None = None) -> None:
        if micro_batch < 1:
            raise ValueError(f"data.micro_batch: {micro_batch}; at least 1")
        self.micro_batch = micro_batch
        self.packed = packed

    def batches(self, renderer: ChatRenderer, samples: list[Sample]) -> list[MicroBatch]:
        """The micro-batches; like lengths share one, so that little is padded."""
        lengths = [len(sample.rendered.input_ids) for sample in samples]
        if self.packed is None:
            order = sorted(range(len(samples)), key=lengths.__getitem__)
            return [collate_for(renderer, [samples[i] for i in part]) for part in self._parts(order)]
        rows = sorted(pack(lengths, self.packed), key=lambda row: sum(lengths[i] for i in row))
        return [_packed(renderer, [[samples[i] for i in row] for row in part]) for part in self._parts(rows)]

    def idle(self, batches: list[MicroBatch]) -> list[MicroBatch]:
        """A micro-batch that trains nothing."""
        return [without_labels(batches[0])]

    def filled(self, batches: list[MicroBatch]) -> tuple[int, int]:
        """See `Shape`."""
        masks = [batch["attention_mask"] for batch in batches]
        return sum(int(mask.sum()) for mask in masks), sum(mask.numel() for mask in masks)

    def _parts(self, rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
        for start in range(0, len(rows), self.micro_batch):
            yield rows[start : start + self.micro_batch]


class Prompts:
    """A rank's share of a step as it is: samples to be answered, without their answers."""

    generation = True

    def batches(self, renderer: ChatRenderer, samples: list[Sample]) -> list[Sample]:
        """The samples, in the stream's order."""
        return samples

    def idle(self, batches: list[Sample]) -> list[Sample]:
        """None."""
        return []

    def filled(self, batches: list[Sample]) -> tuple[int, int]:
        """Nothing is padded."""
        tokens = sum(len(sample.rendered.input_ids) for sample in batches)
        return tokens, tokens


class StepLoader:
    """Yields, per rank, its share of a whole optimizer step, as `cut` makes it (micro-batches, say), for ever.

    The cursor of every step that was handed out waits in a queue; `commit` after the optimizer step makes the oldest
    of them the state that `state_dict` returns, and enters its samples in the ledger that `ledger` opens, given what
    changed in the mixture since the checkpoint (no ledger for the ranks that only repeat another's samples). What was
    prefetched or in flight when a run dies is therefore trained by the next attempt, once.
    """

    def __init__(
        self,
        mixture: OpenMixture,
        renderer: ChatRenderer,
        split: Split,
        cut: Shape,
        quarantine: Quarantine,
        ledger: Callable[[list[str]], Ledger] | None = None,
        workers: int = 0,
        prefetch: int = 2,
        fetch_ahead: int = 0,
    ) -> None:
        self.mixture = mixture
        self.dataset = _Steps(mixture, renderer, cut)
        self.split = split
        self.quarantine = quarantine
        self.open_ledger = ledger
        self.workers = workers
        self.prefetch = prefetch
        self.committed, self.changes = begin(mixture, split.lanes)
        self.handed_out: deque[_HandedOut] = deque()
        self.ledger: Ledger | None = None
        self.ahead = Ahead(mixture, split, fetch_ahead) if fetch_ahead else None
        self.metrics: dict[str, float] = {}

    def warm(self) -> None:
        """Have the first steps' shards fetched from now on, while the model is being built."""
        if self.ahead is not None:
            self.ahead.start(self.committed)

    def __iter__(self) -> Iterator[list[Any]]:
        self.handed_out.clear()
        if self.ahead is not None and self.ahead.process is None:
            self.warm()
        walk = _Walk(self.mixture, self.committed, self.split)
        prepared = self._prepared(walk)
        spare: list[Any] = []
        while True:
            begun = time.perf_counter()
            try:
                found = next(prepared)
            except SceneError as error:  # torch's traceback is a cycle: its workers would be waited for in vain
                raise error.with_traceback(None) from None
            waited = time.perf_counter() - begun
            step, after = walk.begun.popleft()
            for _, refused in found.refused:
                self.quarantine.add(refused)
            self._measure(found, waited)
            self.handed_out.append(_HandedOut(step, frozenset(address for address, _ in found.refused), after))
            if self.ahead is not None:
                self.ahead.advance(after.step)
            spare = found.batches or spare
            if not spare:
                raise SceneError(f"the first step's samples were all refused; the last: {found.refused[-1][1].reason}")
            yield found.batches or self.dataset.cut.idle(spare)

    def commit(self, step: int, shares: int = 1) -> None:
        """The oldest `shares` that were handed out have been trained, in optimizer step `step` of the curriculum."""
        for _ in range(shares):
            done = self.handed_out.popleft()
            self.committed = done.after
            if self.open_ledger is not None:
                if self.ledger is None:
                    self.ledger = self.open_ledger(self.changes)
                self.ledger.append(step, done.samples, done.refused)

    def state_dict(self) -> dict[str, Any]:
        """Where the next attempt begins: after the last committed step."""
        if self.ledger is not None:
            self.ledger.flush()
        return self.committed.state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin after a committed step; takes effect at the next `iter`, whether or not one has begun."""
        self.committed, self.changes = begin(self.mixture, self.split.lanes, Cursor.of(state))
        for change in self.changes:
            log.warning("the mixture changed since the checkpoint: %s", change)
        if self.ahead is not None:
            self.ahead.start(self.committed)

    def close(self) -> None:
        """End what runs beside: nothing is fetched any more."""
        if self.ahead is not None:
            self.ahead.stop()

    def _prepared(self, walk: _Walk) -> Iterator[Prepared]:
        loader: DataLoader[Any] = DataLoader(
            self.dataset,
            batch_size=None,
            sampler=walk,
            num_workers=self.workers,
            prefetch_factor=self.prefetch if self.workers else None,
            collate_fn=_as_it_is,
            multiprocessing_context=_WidePipes() if self.workers else None,
            worker_init_fn=functools.partial(_begin_worker, os.getpid()),
            generator=torch.Generator(),  # its own: the global generator's draws belong to the model
        )
        return iter(loader)

    def _measure(self, found: Prepared, waited: float) -> None:
        self.metrics = {
            "data/wait_s": waited,
            "data/fetch_s": found.fetch_s,
            "data/render_s": found.render_s,
            "data/padding": found.padding / max(1, found.positions),
            "data/refused": float(len(self.quarantine)),
        }


class _HandedOut(NamedTuple):
    samples: list[Address]
    refused: frozenset[Address]
    after: Cursor


class _Steps(Dataset[Prepared]):
    """Prepares a rank's whole share of a step, in one of the DataLoader's workers."""

    def __init__(self, mixture: OpenMixture, renderer: ChatRenderer, cut: Shape) -> None:
        self.mixture = mixture
        self.renderer = renderer
        self.cut = cut

    def __getitem__(self, step: list[Address]) -> Prepared:
        begun, waited = time.perf_counter(), self._waited()
        samples: list[Sample] = []
        refused: list[tuple[Address, Refused]] = []
        for address in step:
            sample = self.sample(address)
            if isinstance(sample, Refused):
                refused.append((address, sample))
            else:
                samples.append(sample)
        batches = self.cut.batches(self.renderer, samples)
        fetch_s = self._waited() - waited
        filled, positions = self.cut.filled(batches)
        render_s = time.perf_counter() - begun - fetch_s
        return Prepared(batches, refused, fetch_s, render_s, positions - filled, positions)

    def sample(self, address: Address) -> Sample | Refused:
        """One sample, rendered; or why it cannot be."""
        found = self.mixture.read(address)
        if isinstance(found, Refused):
            return found
        scene, task, draw = found
        try:
            exchange = self.mixture.tasks[task].conversation(scene, draw)
            rendered = self.renderer.render(scene, exchange, self.cut.generation)
        except SceneError as error:
            return Refused(self.mixture.sample_id(address), str(error))
        # Rendered is what is trained; the raw sensors would only be copied from process to process.
        return Sample(rendered, replace(scene, cameras=(), lidar=None, radar=None), task, address)

    def _waited(self) -> float:
        return sum(reader.waited_s for reader in self.mixture.readers)


class _WidePipes(ForkContext):
    """Forks workers whose results come through pipes of a megabyte instead of 64 KB, in fewer turns."""

    def Queue(self, maxsize: int = 0) -> Any:  # noqa: N802  # the name is multiprocessing's
        queue: Any = super().Queue(maxsize)
        with contextlib.suppress(OSError):  # the system's limit for this user
            fcntl.fcntl(queue._writer.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        return queue


class _Walk:
    """The sampler: whose samples each step's share holds. The steps that workers were given wait in `begun`, each with
    the cursor after it.
    """

    def __init__(self, mixture: OpenMixture, cursor: Cursor, split: Split) -> None:
        self.steps = steps(mixture, cursor, split)
        self.begun: deque[tuple[list[Address], Cursor]] = deque()

    def __iter__(self) -> Iterator[list[Address]]:
        for step, after in self.steps:
            self.begun.append((step, after))
            yield step


def collate_for(renderer: ChatRenderer, samples: Sequence[Sample], generation: bool = False) -> MicroBatch:
    """A micro-batch of rendered samples, padded as `renderer`'s tokenizer pads; on the left for generation."""
    side: Literal["left", "right"] = "left" if generation else "right"
    return collate(*_columns(samples), *_token_ids(renderer), side)


def collate_answers(
    renderer: ChatRenderer, prompts: Sequence[Sample], answers: Sequence[Sequence[Sequence[int]]]
) -> MicroBatch:
    """A micro-batch of rows that are a prompt each and all `answers` to it, see `collate_shared_prefix`."""
    rendered, scenes, tasks = _columns(prompts)
    return collate_shared_prefix(rendered, answers, scenes, tasks, *_token_ids(renderer))


def _columns(samples: Sequence[Sample]) -> tuple[list[Rendered], list[Scene], list[str]]:
    return [s.rendered for s in samples], [s.scene for s in samples], [s.task for s in samples]


def _packed(renderer: ChatRenderer, rows: Sequence[Sequence[Sample]]) -> MicroBatch:
    flat = [sample for row in rows for sample in row]
    return collate_packed(
        [[sample.rendered for sample in row] for row in rows],
        [sample.scene for sample in flat],
        [sample.task for sample in flat],
        *_token_ids(renderer),
    )


def _token_ids(renderer: ChatRenderer) -> tuple[int, int, int]:
    """Of padding, of an image's placeholder, of a video's."""
    ids = renderer.tokenizer.convert_tokens_to_ids
    return renderer.tokenizer.pad_token_id, ids("<|image_pad|>"), ids("<|video_pad|>")


def without_labels(batch: MicroBatch) -> MicroBatch:
    """A micro-batch that trains nothing: what a rank computes, beside the others, when it has nothing to train."""
    return {**batch, "labels": torch.full_like(batch["labels"], IGNORE_INDEX)}


def _as_it_is(prepared: Any) -> Any:
    return prepared


def _begin_worker(parent: int, _: int) -> None:
    end_with_parent(parent)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # sent to the whole job: the step that is saved still needs us
    gc.freeze()  # collecting what was inherited would copy the trainer's whole heap, page by page
    torch.set_num_threads(1)
