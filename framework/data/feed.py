"""How scenes reach the model: tasks, sensors, rendering and batch sizes of a recipe, whatever the mixture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from framework.data.chat import ChatRenderer, Rendered
from framework.data.loader import Batches, StepLoader, collate_for
from framework.data.mixture import Mixture
from framework.data.quarantine import Quarantine
from framework.data.sensors import SensorInput
from framework.data.tasks import Task
from framework.scene.batch import MicroBatch
from framework.scene.types import Scene


@dataclass(frozen=True)
class Feed:
    """The data side of a recipe.

    `tasks` and `sensors` by name; `cameras` and `image_width` as in `ChatRenderer`, samples up to `max_length`
    tokens. A step takes `global_batch` samples over all ranks, `micro_batch` at a time; `workers` processes prepare
    `prefetch` micro-batches each. More than `refusals` unusable samples stop the run.
    """

    tasks: Mapping[str, Task]
    sensors: Mapping[str, SensorInput]
    global_batch: int
    micro_batch: int
    max_length: int
    cameras: Sequence[str] | None = None
    image_width: int | None = None
    workers: int = 0
    prefetch: int = 4
    refusals: int = 100

    @property
    def special_tokens(self) -> list[str]:
        """What the tokenizer must know beyond the backbone's own: the tokens that the tasks' answers use."""
        return list(dict.fromkeys(token for task in self.tasks.values() for token in task.tokens))

    def renderer(self, processor: Any) -> ChatRenderer:
        """The renderer over the backbone's processor."""
        return ChatRenderer(processor, self.sensors, self.max_length, self.cameras, self.image_width)

    def loader(
        self, mixture: Mixture, processor: Any, seed: int, folder: Path, world: int = 1, rank: int = 0
    ) -> StepLoader:
        """The endless loader of rank `rank` over `mixture`; refused samples are written to `folder`."""
        return StepLoader(
            mixture.open(self.tasks, seed),
            self.renderer(processor),
            Batches(self.global_batch, self.micro_batch, world, rank),
            Quarantine(self.refusals, folder / f"refused.rank-{rank}.jsonl"),
            self.workers,
            self.prefetch,
        )

    def prompts(self, scenes: Iterable[Scene], task: str, processor: Any, rows: int) -> Iterator[MicroBatch]:
        """Prompts of one task over scenes that support it, once through and in order, `rows` at a time, padded for
        generation.
        """
        renderer, chosen = self.renderer(processor), self.tasks[task]
        samples: Iterator[tuple[Rendered, Scene, str]] = (
            (renderer.render(scene, chosen.conversation(scene, task), for_generation=True), scene, task)
            for scene in scenes
            if chosen.supports(scene)
        )
        while batch := list(islice(samples, rows)):
            yield collate_for(renderer, batch, generation=True)
