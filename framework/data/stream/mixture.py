"""Streams of shards mixed in proportion, in an order that is a pure function of seed and position.

Nothing between the order and the reader keeps a position of its own. Which samples step k has is therefore the same
whatever the ranks, workers and restarts (contract 2), and a shard that cannot be read raises where it is read instead
of ending an iteration early.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from annotated_types import MinLen

from framework.data.render.tasks import Task, choose_task
from framework.data.shards.cache import CachePolicy, CorruptShardError, ShardCache, ShardError
from framework.data.shards.quarantine import QuarantinedSample
from framework.data.shards.reader import ShardReader, open_reader
from framework.data.shards.statistics import Survey, read_statistics, survey_of
from framework.data.stream.address import Address, StreamInfo
from framework.data.stream.order import StreamOrder
from framework.recipe.component import component
from framework.recipe.paths import InputPath
from framework.recipe.ranges import Count, PositiveCount, PositiveWeight, Weight
from framework.scene.check import check_scene
from framework.scene.inputs import Input, with_inputs
from framework.scene.types import Scene, SceneError


class Source(Protocol):
    """The source of a stream's shards."""

    def location(self) -> Location:
        """Returns where the shards are. Shards that are generated exist afterwards."""
        ...

    def survey(self, count: int) -> Survey:
        """Outlines of about `count` scenes of the stream, which `plan` counts; writes no shard."""
        ...


class Location(NamedTuple):
    """The place of a stream's shards."""

    remote: str
    """The folder or URL where they are stored."""
    cache: Path
    """The local folder from which they are read; may be the same."""


@component
class Shards:
    """A stream of shards that exist. Give either `local` or `remote`.

    Args:
        local: A folder of shards, read in place.
        remote: A URL, `s3://bucket/prefix`, or a folder, whose shards are copied to `cache`.
        cache: Local folder for the shards of `remote`, or for the unpacked ones of `local`.

    Raises:
        ValueError: Both or neither of `local` and `remote` are given, or `remote` without `cache`.
    """

    def __init__(self, local: InputPath | None = None, remote: str | None = None, cache: str | None = None) -> None:
        if (local is None) == (remote is None):
            raise ValueError("data: give a stream either local (a folder) or remote (a URL, with cache)")
        if remote is not None and cache is None:
            raise ValueError(f"data: {remote} needs cache, the local folder for its shards")
        self.remote = str(local) if remote is None else remote
        self.cache = Path(self.remote) if cache is None else Path(cache)

    def location(self) -> Location:
        """See `Source`."""
        return Location(self.remote, self.cache)

    def survey(self, count: int) -> Survey:
        """See `Source`: from the index alone where that has statistics, else the first scenes."""
        path = self.cache / "index.json"
        if str(self.cache) == self.remote and (statistics := read_statistics(path)) is not None:
            return statistics.survey()
        cache = ShardCache(self.remote, self.cache, CachePolicy(), session="")  # fetches the index
        statistics = read_statistics(path)
        if statistics is not None:
            return statistics.survey()
        return survey_of(read_scenes(self, count), int(cache.index.samples.sum()))


@component
@dataclass(frozen=True)
class Part:
    """One stream of a mixture. Its amount is given by one of `proportion`, `passes` and `samples`."""

    source: Source
    """The stream's shards."""
    tasks: Annotated[Mapping[str, PositiveWeight | None], MinLen(1)]
    """Weights of the tasks that its scenes are used for, by name; None for one that another recipe names and this one
    leaves out."""
    proportion: PositiveWeight | Annotated[Mapping[Count, Weight], MinLen(1)] | None = None
    """Its share relative to the other parts', or shares by step of the stage, linear in between. 1 if no amount is
    given."""
    passes: PositiveWeight | None = None
    """Passes over the stream in the stage."""
    samples: PositiveCount | None = None
    """Samples of the stream in the stage."""
    inputs: Sequence[Input] | None = None
    """Inputs that prompts show of its scenes, next to the ego's history; None shows all. Two parts of one source, one
    of them without images and clouds, teach more in the same time where these are most of a step."""

    @property
    def weights(self) -> dict[str, float]:
        """The weights of the tasks that are not left out."""
        return {name: weight for name, weight in self.tasks.items() if weight is not None}


@component
class Mixture:
    """Streams to be mixed.

    Args:
        parts: The streams by name.

    Raises:
        ValueError: There is no part, or one has an amount that is not positive or given twice, or no task.
    """

    def __init__(self, parts: Mapping[str, Part]) -> None:
        if not parts:
            raise ValueError("mixture.parts: empty; name at least one stream")
        for name, part in parts.items():
            _check_part(f"mixture.parts.{name}", part)
        self.parts = dict(parts)

    def open(
        self,
        tasks: Mapping[str, Task],
        seed: int,
        samples: int,
        canonical_nodes: int = 1,
        shuffle_block: int = 1 << 14,
        cache: CachePolicy | None = None,
        session: str = "",
        corrupt_shards: Literal["stop", "quarantine"] = "stop",
    ) -> OpenMixture:
        """Opens the streams for a stage.

        Args:
            tasks: The recipe's tasks by name.
            seed: Seed of the order of samples.
            samples: Samples that the stage trains in all.
            canonical_nodes: Lanes of the order, see `StreamOrder`.
            shuffle_block: Samples that are shuffled among themselves, see `StreamOrder`.
            cache: How shards are cached; None takes the defaults.
            session: Names the run's attempt, see `ShardCache`.
            corrupt_shards: See `DataPipeline`.

        Raises:
            ValueError: A part names an unknown task, or the parts ask for more samples than the stage has.
            SceneError: A stream cannot be read.
        """
        for name, part in self.parts.items():
            unknown = set(part.tasks) - set(tasks)
            if unknown:
                raise ValueError(
                    f"mixture.parts.{name}.tasks: {sorted(unknown)} are not tasks; there are {sorted(tasks)}"
                )
        orders, readers = [], []
        for name, part in self.parts.items():
            remote, folder = part.source.location()
            readers.append(ShardReader(ShardCache(remote, folder, cache or CachePolicy(), session)))
            counts = readers[-1].cache.index.samples
            orders.append(StreamOrder(name, counts, seed, canonical_nodes, shuffle_block))
        shares = Shares(self.parts, [order.total for order in orders], samples)
        return OpenMixture(self.parts, orders, readers, shares, dict(tasks), corrupt_shards)


class Shares:
    """Each part's share of a step's samples.

    Passes and samples become shares of the stage; parts with a proportion divide what these leave. Where no part has
    a proportion, shares are relative.

    Args:
        parts: The mixture's parts.
        sizes: Samples of each stream.
        samples: Samples that the stage trains in all.

    Raises:
        ValueError: Parts ask for more samples than the stage has, or schedules leave a step without any.
    """

    def __init__(self, parts: Mapping[str, Part], sizes: list[int], samples: int) -> None:
        counted = {
            name: float(part.samples if part.samples is not None else (part.passes or 0.0) * size)
            for (name, part), size in zip(parts.items(), sizes, strict=True)
        }
        total = sum(counted.values())
        relative = [name for name, count in counted.items() if not count]
        if relative and total > samples * (1 - 1e-9):
            raise ValueError(
                f"mixture.parts: passes and samples take {total:.0f} of the stage's {samples} samples, which leaves "
                f"none for {relative}: lengthen the stage or take less"
            )
        whole = samples if relative else total
        self.fixed = np.array([count / whole for count in counted.values()])
        self.schedules = [_schedule(part.proportion) if name in relative else {0: 0.0} for name, part in parts.items()]
        if relative:
            self._check_schedules(relative)

    def _check_schedules(self, relative: list[str]) -> None:
        """Checks the steps that schedules name: shares are linear in between, so that their sum is lowest at one of
        them.
        """
        for step in sorted({step for schedule in self.schedules for step in schedule}):
            if not sum(np.interp(step, list(s), list(s.values())) for s in self.schedules) > 0:
                raise ValueError(
                    f"mixture.parts: the proportions of {relative} are all 0 at step {step}, which leaves it without "
                    "samples; start one before the other ends"
                )

    def at(self, step: int) -> npt.NDArray[np.float64]:
        """Returns the shares `(parts,)` at a step of the stage, whose sum is 1."""
        free = np.array([np.interp(step, list(s), list(s.values())) for s in self.schedules])
        left = 1.0 - self.fixed.sum()
        return self.fixed + (left * free / free.sum() if free.sum() > 0 else 0.0)


def mean_shares(mixture: Mixture, sizes: list[int], steps: int, global_batch: int) -> dict[str, float]:
    """Each part's share of the samples of a stage of `steps` steps. `sizes` are the scenes of each stream."""
    shares = Shares(mixture.parts, sizes, steps * global_batch)
    moments = np.unique(np.linspace(0, steps - 1, min(steps, 1000)).round().astype(np.int64))
    mean = np.mean([shares.at(int(step)) for step in moments], axis=0)
    return dict(zip(mixture.parts, mean.tolist(), strict=True))


class OpenMixture:
    """A mixture whose samples can be read. It pickles to worker processes."""

    def __init__(
        self,
        parts: Mapping[str, Part],
        orders: list[StreamOrder],
        readers: list[ShardReader],
        shares: Shares,
        tasks: dict[str, Task],
        corrupt_shards: Literal["stop", "quarantine"] = "stop",
    ) -> None:
        self.names = list(parts)
        self.weights = [part.weights for part in parts.values()]
        self.inputs = [part.inputs for part in parts.values()]
        self.orders = orders
        self.readers = readers
        self.shares = shares
        self.tasks = tasks
        self.corrupt_shards = corrupt_shards

    @functools.cached_property
    def fingerprints(self) -> list[str]:
        """A hash of each stream's data and order, which changes with either."""
        return [
            f"{order.fingerprint()}-{reader.cache.index.fingerprint()}"
            for order, reader in zip(self.orders, self.readers, strict=True)
        ]

    def stream_infos(self) -> list[StreamInfo]:
        """Returns the description of every stream, in order."""
        shares = self.shares.at(0).tolist()
        facts = zip(self.names, self.orders, self.fingerprints, shares, strict=True)
        return [StreamInfo(name, order.total, digest, share) for name, order, digest, share in facts]

    def sample_id(self, address: Address) -> str:
        """Returns the stable name of a sample: stream, shard, place within the shard."""
        shard, place = self.orders[address.stream].locate(address.sample)
        return f"{self.names[address.stream]}/{shard}/{place}"

    def shard(self, address: Address) -> tuple[int, int]:
        """Returns the stream and the shard that hold a sample."""
        return address.stream, self.orders[address.stream].locate(address.sample)[0]

    def read(self, address: Address) -> tuple[Scene, str, str] | QuarantinedSample:
        """Returns the scene of a sample, its task in this pass and the draw for it; or why it cannot be used.

        Raises `SceneError` when storage cannot be read, and when it holds a corrupt shard and corrupt shards stop the
        run: neither is the fault of one sample.
        """
        order = self.orders[address.stream]
        shard, place = order.locate(address.sample)
        try:
            scene = self.readers[address.stream].scene(shard, place)
        except SceneError as error:
            quarantined = isinstance(error, CorruptShardError) and self.corrupt_shards == "quarantine"
            if isinstance(error, ShardError) and not quarantined:
                raise
            return QuarantinedSample(self.sample_id(address), str(error))
        problems = check_scene(scene)
        if problems:
            return QuarantinedSample(self.sample_id(address), f"scene {scene.id}: {'; '.join(problems)}")
        draw = f"{order.seed}/{address.turn}"
        weights = self.weights[address.stream]
        task = choose_task(scene, self.tasks, weights, draw)
        if task is None:
            return QuarantinedSample(self.sample_id(address), f"scene {scene.id} supports none of {sorted(weights)}")
        return with_inputs(scene, self.inputs[address.stream]), task, draw


def read_scenes(source: Source, limit: int | None = None) -> Iterator[Scene]:
    """Yields the first `limit` scenes of a stream (None: all), once and in the order they were written.

    Raises `SceneError` for a record that cannot be used: an evaluation that omits scenes measures something else.
    """
    reader = open_reader(*source.location())
    for shard, samples in enumerate(reader.cache.index.samples):
        for place in range(samples):
            if limit is not None and limit <= 0:
                return
            limit = None if limit is None else limit - 1
            yield reader.scene(shard, place)


def _check_part(where: str, part: Part) -> None:
    given = {key: getattr(part, key) for key in ("proportion", "passes", "samples") if getattr(part, key) is not None}
    if len(given) > 1:
        raise ValueError(f"{where}: {' and '.join(given)} are given; a stream's amount is one of them")
    for key, value in given.items():
        shares = value.values() if isinstance(value, Mapping) else [value]
        lowest = min(shares, default=0)
        if isinstance(value, Mapping) and lowest >= 0 and max(shares, default=0) > 0:
            continue
        if not lowest > 0:
            raise ValueError(f"{where}.{key}: {value}; make it positive, or remove the stream")
    if not part.weights:
        raise ValueError(f"{where}.tasks: empty; name at least one task with its weight")
    for task, weight in part.weights.items():
        if not weight > 0:
            raise ValueError(f"{where}.tasks.{task}: weight {weight}; make it positive, or null to leave the task out")


def _schedule(proportion: float | Mapping[int, float] | None) -> dict[int, float]:
    if isinstance(proportion, Mapping):
        return {int(step): float(share) for step, share in sorted(proportion.items())}
    return {0: 1.0 if proportion is None else float(proportion)}
