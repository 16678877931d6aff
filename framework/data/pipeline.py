"""How scenes reach the model: tasks, sensors, rendering and batch sizes of a recipe, whatever the mixture."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from framework.data.render.chat import ChatRenderer
from framework.data.render.sensors import SensorInput
from framework.data.render.tasks import Task
from framework.data.shards.cache import CachePolicy
from framework.data.shards.quarantine import Quarantine
from framework.data.stream.cursor import Split
from framework.data.stream.ledger import Heading, Ledger
from framework.data.stream.loader import Cut, Sample, Shape, StepLoader, collate_for
from framework.data.stream.mixture import Mixture
from framework.data.stream.workers import choose_workers
from framework.run.layout import LEDGER
from framework.scene.batch import MicroBatch
from framework.scene.types import Scene


@dataclass(frozen=True, slots=True)
class StageRun:
    """A stage as one attempt of a run trains it: its name, how many samples it has in all, the seed of their order, and
    the run's folder.
    """

    name: str
    samples: int
    seed: int
    folder: Path
    attempt: int = 1


@dataclass(frozen=True)
class DataPipeline:
    """The data side of a recipe.

    `tasks` and `sensors` by name; `cameras`, `image_width` and `video_frames` as in `ChatRenderer`, samples up to
    `max_length` tokens. A step takes `global_batch` samples over all ranks, `micro_batch` rows at a time: a sample a
    row, or with `pack` as many as so many tokens hold. `workers` processes ("auto": as many as the run's last attempt
    showed to be needed) prepare `prefetch` steps each, and shards are fetched `fetch_ahead` steps before their turn (0:
    when they are read).

    `canonical_nodes` and `shuffle_block` set the order of samples (see `StreamOrder`): give as many nodes as the job
    may ever have. `cache` says how shards are kept; one that storage holds damaged stops the run or, with
    "quarantine", has its samples refused. More than `quarantine_limit` refused samples stop the run.
    """

    tasks: Mapping[str, Task]
    sensors: Mapping[str, SensorInput]
    global_batch: int
    micro_batch: int
    max_length: int
    cameras: Sequence[str] | None = None
    image_width: int | None = None
    video_frames: int | None = None
    pack: int | None = None
    workers: int | Literal["auto"] = 0
    prefetch: int = 2
    fetch_ahead: int = 0
    canonical_nodes: int = 1
    shuffle_block: int = 1 << 14
    cache: CachePolicy = field(default_factory=CachePolicy)
    corrupt_shards: Literal["stop", "quarantine"] = "stop"
    quarantine_limit: int = 100

    def __post_init__(self) -> None:
        if self.pack is not None and self.pack < self.max_length:
            raise ValueError(
                f"data.pack: {self.pack} tokens hold no sample of data.max_length: {self.max_length}; raise data.pack"
            )

    @property
    def special_tokens(self) -> list[str]:
        """What the tokenizer must know beyond the backbone's own: the tokens that the tasks' answers use."""
        return list(dict.fromkeys(token for task in self.tasks.values() for token in task.tokens))

    def renderer(self, processor: Any) -> ChatRenderer:
        """The renderer over the backbone's processor."""
        return ChatRenderer(processor, self.sensors, self.max_length, self.cameras, self.image_width, self.video_frames)

    def loader(
        self,
        mixture: Mixture,
        processor: Any,
        run: StageRun,
        world: int = 1,
        rank: int = 0,
        writes: bool = True,
        cut: Shape | None = None,
    ) -> StepLoader:
        """The endless loader of data-parallel rank `rank` of `world` over `mixture`; its shares are made into
        micro-batches, unless `cut` says otherwise.

        Refused samples and the ledger go to the run's folder, where this process `writes`: the ranks of one
        tensor-parallel group train the same samples, and one of them writes.
        """
        opened = mixture.open(
            self.tasks,
            run.seed,
            run.samples,
            self.canonical_nodes,
            self.shuffle_block,
            self.cache,
            session=f"{run.folder.name}.{run.attempt}",
            corrupt_shards=self.corrupt_shards,
        )

        workers = self.workers
        if workers == "auto":
            workers = choose_workers(run.folder, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))

        def ledger(changes: list[str]) -> Ledger:
            streams = opened.entries()
            lanes = self.canonical_nodes
            heading = Heading(run.name, run.attempt, rank, world, self.global_batch, lanes, streams, changes)
            return Ledger(run.folder / LEDGER, heading)

        return StepLoader(
            opened,
            self.renderer(processor),
            Split(self.global_batch, world, rank, self.canonical_nodes),
            cut or Cut(self.micro_batch, self.pack),
            Quarantine(self.quarantine_limit, run.folder / f"refused.rank-{rank}.jsonl" if writes else None),
            ledger if writes else None,
            workers,
            self.prefetch,
            self.fetch_ahead,
        )

    def prompts(self, scenes: Iterable[Scene], task: str, processor: Any, rows: int) -> Iterator[MicroBatch]:
        """Prompts of one task over scenes that support it, once through and in order, `rows` at a time, padded for
        generation.
        """
        renderer, chosen = self.renderer(processor), self.tasks[task]
        samples = (
            Sample(renderer.render(scene, chosen.conversation(scene, task), for_generation=True), scene, task)
            for scene in scenes
            if chosen.supports(scene)
        )
        while batch := list(islice(samples, rows)):
            yield collate_for(renderer, batch, generation=True)
