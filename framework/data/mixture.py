"""Streams of shards, mixed in proportion, in an order that is a pure function of seed and epoch.

The order comes from mosaicml-streaming's own resampling and shard-aware shuffle; records are then read by index.
Nothing in between keeps a position of its own, so that "which samples has step k" has one answer, whatever the ranks,
workers and restarts (contract 2), and a shard that cannot be read raises where it is read instead of ending an
iteration early.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from streaming import Stream, StreamingDataset
from streaming.base.shuffle import get_shuffle

from framework.data.quarantine import Refused
from framework.data.record import decode
from framework.data.tasks import Task, choose_task
from framework.recipe.paths import InputPath
from framework.scene.types import Scene, SceneError

SHUFFLE = "py1e"
BLOCK = 1 << 14
"""Samples within which neighbours are mixed: bounds how many shards are open at a time."""


class Source(Protocol):
    """Where a stream's shards are."""

    def stream(self, **weights: Any) -> Stream:
        """The stream of mosaicml-streaming, made ready: shards that are to be generated exist afterwards."""
        ...

    def preview(self, count: int) -> list[Scene]:
        """A few of the scenes, without making the rest ready."""
        ...


class Shards:
    """Shards that exist: a local folder, or `remote` (any URL that streaming knows) with its cache in `local`."""

    def __init__(self, local: InputPath | None = None, remote: str | None = None, cache: str | None = None) -> None:
        if (local is None) == (remote is None):
            raise ValueError("data: give a stream either local (a folder) or remote (a URL, with cache)")
        if remote is not None and cache is None:
            raise ValueError(f"data: {remote} needs cache, the local folder for its shards")
        self.local = local
        self.remote = remote
        self.cache = cache

    def stream(self, **weights: Any) -> Stream:
        """See `Source`. Raises `SceneError` for a folder without an index."""
        if self.local is not None:
            if not (Path(self.local) / "index.json").is_file():
                raise SceneError(f"{self.local}: no index.json: not a folder of shards; write or convert it first")
            return Stream(local=str(self.local), **weights)
        return Stream(remote=self.remote, local=self.cache, **weights)

    def preview(self, count: int) -> list[Scene]:
        """See `Source`: the first scenes."""
        return list(read_scenes(self, count))


@dataclass(frozen=True)
class Part:
    """One stream of a mixture: where it comes from, its share of the mixture's samples, and its tasks with their
    weights.
    """

    source: Source
    tasks: Mapping[str, float]
    proportion: float = 1.0


class Mixture:
    """Named parts, mixed by proportion. `epoch_size` samples make an epoch (None: as many as the streams hold)."""

    def __init__(self, parts: Mapping[str, Part], epoch_size: int | None = None) -> None:
        if not parts:
            raise ValueError("mixture.parts: empty; name at least one stream")
        for name, part in parts.items():
            if not part.proportion > 0:
                raise ValueError(
                    f"mixture.parts.{name}.proportion: {part.proportion}; it must be positive, or remove the stream"
                )
            if not part.tasks:
                raise ValueError(f"mixture.parts.{name}.tasks: empty; name at least one task with its weight")
            for task, weight in part.tasks.items():
                if not weight > 0:
                    raise ValueError(f"mixture.parts.{name}.tasks.{task}: weight {weight}; it must be positive")
        self.parts = dict(parts)
        self.epoch_size = epoch_size

    def open(self, tasks: Mapping[str, Task], seed: int) -> OpenMixture:
        """Open the streams. Raises `ValueError` for an unknown task, `SceneError` for a stream without samples or a
        bad index.
        """
        for name, part in self.parts.items():
            unknown = set(part.tasks) - set(tasks)
            if unknown:
                raise ValueError(
                    f"mixture.parts.{name}.tasks: {sorted(unknown)} are not tasks; there are {sorted(tasks)}"
                )
        total = sum(part.proportion for part in self.parts.values())
        streams = [part.source.stream(proportion=part.proportion / total) for part in self.parts.values()]
        try:
            dataset = StreamingDataset(
                streams=streams,
                epoch_size=self.epoch_size,
                batch_size=1,
                num_canonical_nodes=1,
                shuffle_seed=seed,
                allow_unsafe_types=False,
            )
        except (ValueError, RuntimeError, KeyError) as error:
            raise SceneError(f"mixture of {sorted(self.parts)}: {error}") from error
        return OpenMixture(self, dataset, dict(tasks), seed)


def read_scenes(source: Source, limit: int | None = None) -> Iterator[Scene]:
    """The first `limit` scenes of a stream (None: all), once through and in the order they were written.

    Raises `SceneError` for a record that cannot be used: an evaluation that leaves scenes out measures something else.
    """
    dataset = StreamingDataset(
        streams=[source.stream()], batch_size=1, num_canonical_nodes=1, shuffle=False, allow_unsafe_types=False
    )
    for number in range(min(dataset.num_samples, limit or dataset.num_samples)):
        yield decode(dataset[number])


class OpenMixture:
    """A mixture whose records can be read. Pickles to worker processes."""

    def __init__(self, mixture: Mixture, dataset: StreamingDataset, tasks: dict[str, Task], seed: int) -> None:
        self.names = list(mixture.parts)
        self.weights = [dict(part.tasks) for part in mixture.parts.values()]
        self.dataset = dataset
        self.tasks = tasks
        self.seed = seed

    @property
    def epoch_size(self) -> int:
        """Samples of one pass."""
        return int(self.dataset.epoch_size)

    def order(self, epoch: int) -> npt.NDArray[np.int64]:
        """Record numbers `(epoch_size,)` of pass `epoch`, in training order."""
        units, chosen = self.dataset.resample_streams(epoch)
        order: npt.NDArray[np.int64] = chosen[get_shuffle(SHUFFLE, units, 1, self.seed, epoch, BLOCK)]
        return order

    def sample_id(self, number: int) -> str:
        """The stable name of a record: stream, shard within it, place within the shard."""
        shard, place = self.dataset.spanner[number]
        stream = int(self.dataset.stream_per_shard[shard])
        return f"{self.names[stream]}/{int(shard) - int(self.dataset.shard_offset_per_stream[stream])}/{place}"

    def read(self, number: int, epoch: int) -> tuple[Scene, str] | Refused:
        """The scene of a record and the task it is used for in this pass, or why it cannot be used.

        Raises whatever storage raises when a shard cannot be had: that is no fault of a sample.
        """
        record = self.dataset[int(number)]
        try:
            scene = decode(record)
        except SceneError as error:
            return Refused(self.sample_id(number), str(error))
        stream = int(self.dataset.stream_per_shard[self.dataset.spanner[number][0]])
        task = choose_task(scene, self.tasks, self.weights[stream], f"{self.seed}/{epoch}")
        if task is None:
            return Refused(self.sample_id(number), f"scene {scene.id} supports none of {sorted(self.weights[stream])}")
        return scene, task
