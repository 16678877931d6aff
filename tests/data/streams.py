"""Small streams of shards and attempts at training on them, for the data plane's tests."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from framework.data.pipeline import DataPipeline
from framework.data.render.tasks import Answer, Caption
from framework.data.shards.writer import Summary, Work, write_shards
from framework.data.stream.loader import StepLoader
from framework.data.stream.mixture import Mixture, Part, Shards
from framework.scene.types import Scene
from framework.scene.world.generate import generate_scene

TASKS = {"answer": Answer(), "caption": Caption()}


def write_texts(folder: Path, name: str, scenes: int, shard_bytes: int = 6000) -> Summary:
    """A stream of `scenes` scenes that are all text, a handful in each shard."""
    items = [(name, index) for index in range(scenes)]
    return write_shards(Work(items, _text), folder, part_items=scenes, shard_bytes=shard_bytes, quiet=True)


def _text(item: tuple[str, int]) -> Iterator[Scene]:
    name, index = item
    scene = generate_scene(index, "straight")
    yield dataclasses.replace(
        scene, id=f"{name}-{index}", cameras=(), lidar=None, radar=None, perception=None, surroundings=None
    )


def shares(folders: dict[str, Path], **proportions: float) -> Mixture:
    """A mixture of the streams in `folders`."""
    parts = {
        name: Part(Shards(local=folder), {"answer": 0.7, "caption": 0.3}, proportions.get(name, 1.0))
        for name, folder in folders.items()
    }
    return Mixture(parts)


def pipeline(**changes: Any) -> DataPipeline:
    """Text alone: eight samples a step, four rows at a time."""
    usual: dict[str, Any] = {"tasks": TASKS, "sensors": {}, "global_batch": 8, "micro_batch": 4, "max_length": 400}
    return DataPipeline(**usual | changes)


@dataclasses.dataclass
class Trial:
    """Attempts at one stage in one folder. A checkpoint is written every third step; `seen` are the samples that each
    step of the last attempt handed out, over the data-parallel ranks.
    """

    mixture: Mixture
    pipeline: DataPipeline
    processor: Any
    folder: Path
    steps: int
    attempts: int = 0
    every: int = 3
    seed: int = 7
    seen: dict[int, list[str]] = dataclasses.field(default_factory=dict)

    def attempt(self, world: int = 1, replicas: int = 1, last: int | None = None, ends: str = "") -> None:
        """One attempt over `world` data-parallel ranks of `replicas` processes each, from the newest checkpoint on.

        It ends when step `last` is trained; or when that step was handed out and before it counts, by an "exception"
        in the optimizer, or by "kill -9".
        """
        self.attempts += 1
        self.seen = {}
        for process in range(world * replicas):
            arguments = (world, process // replicas, process % replicas == 0, last or self.steps, ends)
            if ends == "kill -9":
                _killed(self._rank, arguments)
            elif ends == "exception":
                with pytest.raises(RuntimeError, match="the optimizer failed"):
                    self._rank(*arguments)
            else:
                self._rank(*arguments)

    def loader(self, world: int, rank: int, writes: bool) -> StepLoader:
        """A rank's loader, where the newest checkpoint of an earlier attempt left it."""
        loader = self.pipeline.loader(
            self.mixture,
            self.processor,
            stage="sft",
            samples=self.steps * self.pipeline.global_batch,
            seed=self.seed,
            folder=self.folder,
            attempt=self.attempts,
            world=world,
            rank=rank,
            is_writer=writes,
        )
        saved = sorted(
            self.folder.glob("checkpoint-*.json"), key=lambda path: [int(part) for part in path.stem.split("-")[1:]]
        )
        earlier = [path for path in saved if int(path.stem.split("-")[2]) < self.attempts]
        if earlier:
            loader.load_state_dict(json.loads(earlier[-1].read_text()))
        return loader

    def _rank(self, world: int, rank: int, writes: bool, last: int, ends: str) -> None:
        loader = self.loader(world, rank, writes)
        for step, batches in enumerate(loader, loader.committed.step + 1):
            mine = [name for batch in batches for name in batch["sample_ids"]]
            if writes:
                self.seen.setdefault(step, []).extend(mine)
            elif ends != "kill -9":  # killed processes cannot tell each other what they saw
                assert self.seen[step][-len(mine) :] == mine, "ranks of a tensor-parallel group see the same samples"
            if ends and step == last:
                if ends == "kill -9":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise RuntimeError("the optimizer failed")
            loader.commit(step)
            if step % self.every == 0 and rank == 0 and writes:
                (self.folder / f"checkpoint-{step}-{self.attempts}.json").write_text(json.dumps(loader.state_dict()))
            if step == last:
                break
        loader.close()


def _killed(work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def lengths(batches: Sequence[Any]) -> list[int]:
    """Positions of each row."""
    return [int(row.sum()) for batch in batches for row in batch["attention_mask"]]
