"""The endless loader: one item is one optimizer step, and its cursor counts what was trained (contracts 1 and 2)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from framework.data.chat import ChatRenderer, Rendered
from framework.data.collate import collate
from framework.data.mixture import OpenMixture
from framework.data.quarantine import Quarantine, Refused
from framework.scene.batch import MicroBatch
from framework.scene.types import Scene, SceneError

Address = tuple[int, int]
"""Epoch and record number."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far training has come: `taken` samples of the order of pass `epoch`, over all ranks."""

    epoch: int = 0
    taken: int = 0


class Batches:
    """How a step is cut: `global_batch` samples over `world` ranks, `micro_batch` at a time."""

    def __init__(self, global_batch: int, micro_batch: int, world: int = 1, rank: int = 0) -> None:
        if global_batch % world:
            raise ValueError(f"data.global_batch: {global_batch} samples do not divide over {world} ranks")
        if micro_batch < 1:
            raise ValueError(f"data.micro_batch: {micro_batch}; at least 1")
        self.global_batch = global_batch
        self.micro_batch = micro_batch
        self.share = slice(rank * global_batch // world, (rank + 1) * global_batch // world)

    def cut(self, step: list[Address]) -> list[list[Address]]:
        """This rank's micro-batches of a step's samples."""
        mine = step[self.share]
        return [mine[i : i + self.micro_batch] for i in range(0, len(mine), self.micro_batch)]


def steps(mixture: OpenMixture, cursor: Cursor, global_batch: int) -> Iterator[tuple[list[Address], Cursor]]:
    """The samples of every step from `cursor` on, for ever, each with the cursor after it; a step may span two
    passes.
    """
    epoch, taken = cursor.epoch, cursor.taken
    order = mixture.order(epoch)
    while True:
        step: list[Address] = []
        while len(step) < global_batch:
            if taken >= len(order):
                epoch, taken = epoch + 1, 0
                order = mixture.order(epoch)
            more = order[taken : taken + global_batch - len(step)]
            step += [(epoch, int(number)) for number in more]
            taken += len(more)
        yield step, Cursor(epoch, taken)


class _Micro(Dataset[tuple[Rendered, Scene, str] | Refused]):
    """Reads and renders samples by address, in the DataLoader's workers."""

    def __init__(self, mixture: OpenMixture, renderer: ChatRenderer) -> None:
        self.mixture = mixture
        self.renderer = renderer

    def __getitem__(self, address: Address) -> tuple[Rendered, Scene, str] | Refused:
        epoch, number = address
        found = self.mixture.read(number, epoch)
        if isinstance(found, Refused):
            return found
        scene, task = found
        try:
            conversation = self.mixture.tasks[task].conversation(scene, f"{self.mixture.seed}/{epoch}")
            return self.renderer.render(scene, conversation), scene, task
        except SceneError as error:
            return Refused(self.mixture.sample_id(number), str(error))


class StepLoader:
    """Yields, per rank, the micro-batches of a whole optimizer step, for ever.

    The cursor of every step that was handed out waits in a queue; `commit` after the optimizer step makes the oldest
    of them the state that `state_dict` returns. What was prefetched or in flight when a run dies is therefore trained
    by the next attempt, once.
    """

    def __init__(
        self,
        mixture: OpenMixture,
        renderer: ChatRenderer,
        batches: Batches,
        quarantine: Quarantine,
        workers: int = 0,
        prefetch: int = 4,
    ) -> None:
        self.mixture = mixture
        self.renderer = renderer
        self.batches = batches
        self.quarantine = quarantine
        self.workers = workers
        self.prefetch = prefetch
        self.committed = Cursor()
        self.handed_out: deque[Cursor] = deque()

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        self.handed_out.clear()
        micro = self._micro_batches()
        for step, after in steps(self.mixture, self.committed, self.batches.global_batch):
            found = [sample for _ in self.batches.cut(step) for sample in next(micro)]
            self.handed_out.append(after)
            yield self._micro_batches_of(found)

    def commit(self) -> None:
        """The oldest step that was handed out has been trained."""
        self.committed = self.handed_out.popleft()

    def state_dict(self) -> dict[str, Any]:
        """Where the next attempt begins: after the last committed step."""
        return asdict(self.committed)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin after a committed step; takes effect at the next `iter`, whether or not one has begun."""
        self.committed = Cursor(**state)

    def _micro_batches(self) -> Iterator[list[tuple[Rendered, Scene, str] | Refused]]:
        walk = steps(self.mixture, self.committed, self.batches.global_batch)
        loader: DataLoader[Any] = DataLoader(
            _Micro(self.mixture, self.renderer),
            batch_sampler=_Endless(walk, self.batches),
            num_workers=self.workers,
            prefetch_factor=self.prefetch if self.workers else None,
            collate_fn=list,
            worker_init_fn=_one_thread,
            generator=torch.Generator(),  # its own: the global generator's draws belong to the model
        )
        return iter(loader)

    def _micro_batches_of(self, found: list[tuple[Rendered, Scene, str] | Refused]) -> list[MicroBatch]:
        """A step's usable samples as micro-batches, like lengths together: the step is the same, its padding less."""
        samples = []
        for sample in found:
            if isinstance(sample, Refused):
                self.quarantine.add(sample)
            else:
                samples.append(sample)
        samples.sort(key=lambda sample: len(sample[0].input_ids))
        rows = self.batches.micro_batch
        return [collate_for(self.renderer, samples[i : i + rows]) for i in range(0, len(samples), rows)]


def collate_for(
    renderer: ChatRenderer, samples: list[tuple[Rendered, Scene, str]], generation: bool = False
) -> MicroBatch:
    """A micro-batch of rendered samples, padded as `renderer`'s tokenizer pads; on the left for generation."""
    tokenizer = renderer.tokenizer
    return collate(
        [rendered for rendered, _, _ in samples],
        [scene for _, scene, _ in samples],
        [task for _, _, task in samples],
        pad_id=tokenizer.pad_token_id,
        image_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        side="left" if generation else "right",
    )


class _Endless:
    def __init__(self, walk: Iterator[tuple[list[Address], Cursor]], batches: Batches) -> None:
        self.walk = walk
        self.batches = batches

    def __iter__(self) -> Iterator[list[Address]]:
        for step, _ in self.walk:
            yield from self.batches.cut(step)


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
    np.seterr(all="warn")
