"""The data side of a recipe: tasks, sensors, rendering and batch sizes, whatever the mixture."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import MinLen

from framework.data.render.chat import ChatRenderer
from framework.data.render.collate import collate
from framework.data.render.outline import OutlineRenderer
from framework.data.render.sensors import SensorInput
from framework.data.render.tasks import Task
from framework.data.shards.cache import CachePolicy
from framework.data.shards.quarantine import Quarantine, QuarantinePolicy
from framework.data.stream.batcher import Batcher, MicroBatcher
from framework.data.stream.cursor import RankSlice
from framework.data.stream.dataset import StepDataset
from framework.data.stream.ledger import Ledger, LedgerHeader
from framework.data.stream.loader import StepLoader
from framework.data.stream.mixture import Mixture, OpenMixture
from framework.data.stream.worker_count import choose_workers
from framework.recipe.component import component
from framework.recipe.problem import nearest
from framework.recipe.ranges import Batch, Count, Nodes, Pixels, PositiveCount, Tokens, Workers
from framework.run.layout import LEDGER
from framework.scene.batch import MicroBatch
from framework.scene.types import Scene

log = logging.getLogger(__name__)

SAMPLED = (4, 8)
"""Shards of each stream, and scenes of each of these, in which cameras are searched for."""


@component
@dataclass(frozen=True)
class DataPipeline:
    """How scenes become batches.

    Raises:
        ValueError: A packed row is shorter than the longest sample may be, or a camera is named twice.
    """

    tasks: Annotated[Mapping[str, Task], MinLen(1)]
    """What a scene may be used for, by name; a mixture weighs them."""
    sensors: Mapping[str, SensorInput]
    """The sensors next to the cameras, by the name of their encoder."""
    global_batch: Batch
    """Samples of an optimizer step over all ranks."""
    micro_batch: Batch
    """Rows of a micro-batch: a sample each, or as many as `pack` tokens hold."""
    max_length: Tokens
    """Tokens that a sample may have; longer ones are quarantined."""
    cameras: Sequence[str] | None = None
    """Names of the cameras to show, in order; None shows all."""
    image_width: Pixels | None = None
    """Pixels to which wider images are scaled down; None keeps them as recorded."""
    video_frames: PositiveCount | None = None
    """Frames shown of a clip, evenly spaced up to its newest; None shows all."""
    pack: Tokens | None = None
    """Tokens of a packed row; None gives each sample a row of its own."""
    workers: Workers | Literal["auto"] = 0
    """Processes that prepare steps on each rank; "auto" takes as many as the run's last attempt needed."""
    prefetch_factor: PositiveCount = 2
    """Steps that each worker prepares in advance."""
    shard_prefetch_steps: Count = 0
    """Steps by which shards are fetched to the node before their samples are read; 0 fetches them when read."""
    canonical_nodes: Nodes = 1
    """Lanes of the order of samples, see `StreamOrder`. As many as the job may ever have nodes: changing it changes
    the order."""
    shuffle_block: PositiveCount = 1 << 14
    """Neighbouring samples that are shuffled among themselves, see `StreamOrder`."""
    cache: CachePolicy = field(default_factory=CachePolicy)
    """How shards are cached on the node."""
    corrupt_shards: Literal["stop", "quarantine"] = "stop"
    """What a shard that storage holds damaged does: stop the run, or have its samples quarantined."""
    quarantine: QuarantinePolicy = field(default_factory=QuarantinePolicy)
    """How many samples may be quarantined before the run stops."""

    def __post_init__(self) -> None:
        if self.pack is not None and self.pack < self.max_length:
            raise ValueError(
                f"data.pack: {self.pack} tokens hold no sample of data.max_length: {self.max_length}; raise data.pack"
            )
        # In words that `check` can follow (framework.recipe.constructor).
        if len(set(self.cameras or ())) < len(self.cameras or ()):
            raise ValueError(f"data.cameras: {list(self.cameras or ())} names one twice; each camera is shown once")

    @property
    def special_tokens(self) -> list[str]:
        """What the tokenizer must know beyond the backbone's own: the tokens that the tasks' answers use."""
        return list(dict.fromkeys(token for task in self.tasks.values() for token in task.tokens))

    def renderer(self, processor: Any) -> ChatRenderer:
        """The renderer over the backbone's processor."""
        return ChatRenderer(processor, self.sensors, self.max_length, self.cameras, self.image_width, self.video_frames)

    def outline_renderer(self, processor: Any, max_length: int) -> OutlineRenderer:
        """The renderer of outlines over the backbone's processor, for samples of up to `max_length` tokens."""
        return OutlineRenderer(processor, self.sensors, max_length, self.cameras, self.image_width, self.video_frames)

    def loader(
        self,
        mixture: Mixture,
        processor: Any,
        *,
        stage: str,
        samples: int,
        seed: int,
        folder: Path,
        attempt: int = 1,
        world: int = 1,
        rank: int = 0,
        is_writer: bool = True,
        batcher: Batcher | None = None,
    ) -> StepLoader:
        """Opens `mixture` and returns the endless loader of one rank.

        Args:
            mixture: The streams, with their shares.
            processor: The backbone's processor, see `ChatRenderer`.
            stage: The stage's name, for the ledger.
            samples: Samples that the stage trains in all; passes and counts of the mixture are shares of it.
            seed: Seed of the order of samples.
            folder: The run's folder, for the ledger and the quarantined samples.
            attempt: The run's attempt, counted from 1.
            world: Data-parallel ranks.
            rank: This data-parallel rank.
            is_writer: Whether this process writes to `folder`: one of each tensor-parallel group, whose ranks train
                the same samples.
            batcher: Makes batches of the rank's slice of a step; None makes micro-batches.

        Raises:
            ValueError: No stream has a camera of `cameras`, and what `Mixture.open` raises.
        """
        opened = mixture.open(
            self.tasks,
            seed,
            samples,
            self.canonical_nodes,
            self.shuffle_block,
            self.cache,
            session=f"{folder.name}.{attempt}",
            corrupt_shards=self.corrupt_shards,
        )
        self._check_inputs(opened)
        workers = self.workers
        if workers == "auto":
            workers = choose_workers(folder, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))

        def open_ledger(changes: list[str]) -> Ledger:
            streams, lanes = opened.stream_infos(), self.canonical_nodes
            header = LedgerHeader(stage, attempt, rank, world, self.global_batch, lanes, streams, changes)
            return Ledger(folder / LEDGER, header)

        return StepLoader(
            StepDataset(opened, self.renderer(processor), batcher or MicroBatcher(self.micro_batch, self.pack)),
            RankSlice(self.global_batch, world, rank, self.canonical_nodes),
            Quarantine(self.quarantine, folder / f"refused.rank-{rank}.jsonl" if is_writer else None),
            open_ledger if is_writer else None,
            workers,
            self.prefetch_factor,
            self.shard_prefetch_steps,
        )

    def _check_inputs(self, mixture: OpenMixture) -> None:
        """Raises `ValueError` for a camera that none of a few scenes of each stream has: it would never be shown. Warns
        of a sensor that none has. Reads no more scenes than it takes to find all.
        """
        wanted, unseen = set(self.cameras or ()), dict(self.sensors)
        known: set[str] = set()
        scenes = (scene for reader in mixture.readers for scene in reader.sample(*SAMPLED))
        while (unseen or not known.issuperset(wanted)) and (scene := next(scenes, None)) is not None:
            known |= {camera.name for camera in scene.cameras}
            unseen = {name: sensor for name, sensor in unseen.items() if sensor.rows(scene) is None}
        if unseen:
            log.warning("data.sensors: %s are not shown: no scene of the streams has any", sorted(unseen))
        unknown = [name for name in self.cameras or () if name not in known]
        if unknown and known:
            near = nearest(unknown[0], known)
            meant = f" (did you mean {near}?)" if near else ""
            raise ValueError(f"data.cameras: {unknown} are no cameras of the streams; there are {sorted(known)}{meant}")
        if unknown:
            log.warning("data.cameras: %s are not shown: no scene of the streams has a camera", unknown)

    def prompts(self, scenes: Iterable[Scene], task: str, processor: Any, rows: int) -> Iterator[MicroBatch]:
        """Yields prompts of one task, padded for generation, `rows` at a time: once over the `scenes` that support the
        task, in order.
        """
        renderer, chosen = self.renderer(processor), self.tasks[task]
        samples = (renderer.ask(scene, task, chosen) for scene in scenes if chosen.supports(scene))
        while batch := list(islice(samples, rows)):
            yield collate(batch, renderer.special_ids, side="left")
