"""The position of training in its streams, and the samples that come next (contract 2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from framework.data.stream.address import Address
from framework.data.stream.mixture import OpenMixture


@dataclass(frozen=True, slots=True)
class Position:
    """The position in one stream."""

    taken: int = 0
    """Samples taken from each of its lanes."""
    credit: float = 0.0
    """Samples it is owed in each lane, a fraction: what rounding has left of its share."""
    fingerprint: str = ""
    """Hash of the data and the order that `taken` counts in."""
    present: bool = True
    """Whether the mixture has the stream now."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """The position of a stage.

    All lanes have advanced equally, so that a cursor written with one number of ranks is valid with any other.
    """

    step: int = 0
    """The step of the stage that comes next, from 0."""
    lanes: int = 1
    """Lanes of the streams' order."""
    streams: dict[str, Position] = field(default_factory=dict)
    """The position in every stream, by name."""

    def state(self) -> dict[str, Any]:
        """Returns the cursor as JSON values."""
        return asdict(self)

    @classmethod
    def of(cls, state: dict[str, Any]) -> Cursor:
        """Returns the cursor that `state` was made from."""
        streams = {name: Position(**position) for name, position in state["streams"].items()}
        return cls(int(state["step"]), int(state["lanes"]), streams)


class RankSlice:
    """The part of each step's global batch that one data-parallel rank trains: the samples from `first` up to `last`
    of the step's lanes, laid end to end.

    Args:
        global_batch: Samples of a step over all ranks.
        world: Data-parallel ranks.
        rank: This rank; the ranks of one tensor-parallel group share it.
        lanes: Lanes of the streams' order, see `StreamOrder`.

    Raises:
        ValueError: `global_batch` does not divide over the ranks, or over the lanes.
    """

    def __init__(self, global_batch: int, world: int = 1, rank: int = 0, lanes: int = 1) -> None:
        for name, parts in (("ranks", world), ("data.canonical_nodes", lanes)):
            if global_batch % parts:
                raise ValueError(f"data.global_batch: {global_batch} samples do not divide over {parts} {name}")
        self.global_batch = global_batch
        self.lanes = lanes
        self.lane_samples = global_batch // lanes
        self.first = rank * global_batch // world
        self.last = (rank + 1) * global_batch // world


def start_cursor(mixture: OpenMixture, lanes: int, before: Cursor | None = None) -> tuple[Cursor, list[str]]:
    """Returns the cursor that continues `before` (None: at the start), and what has changed since then, in words.

    Streams that are new, or whose data or order changed, start at their first sample; streams that are gone keep their
    position for their return. Raises `ValueError` when the number of lanes changed, which no position survives.
    """
    fresh = {
        name: Position(fingerprint=digest) for name, digest in zip(mixture.names, mixture.fingerprints, strict=True)
    }
    if before is None or not before.streams:
        return Cursor(0, lanes, fresh), []
    if before.lanes != lanes:
        raise ValueError(
            f"data.canonical_nodes: {lanes}, but the checkpoint's order has {before.lanes}; keep that number, or "
            "restart the stage"
        )
    streams = {name: replace(old, present=name in fresh) for name, old in before.streams.items()}
    changes = []
    for name, position in fresh.items():
        old = before.streams.get(name)
        if old is None:
            changes.append(f"stream {name} is new: it starts at its first sample")
        elif old.fingerprint != position.fingerprint:
            changes.append(
                f"stream {name} has other data or another order than before: it restarts from its first sample"
            )
        elif not old.present:
            changes.append(f"stream {name} is back: it continues where it stopped")
        if old is None or old.fingerprint != position.fingerprint:
            streams[name] = position
    gone = [name for name, old in before.streams.items() if old.present and name not in fresh]
    changes += [f"stream {name} is no longer in the mixture" for name in gone]
    return Cursor(before.step, lanes, streams), changes


def steps_from(mixture: OpenMixture, cursor: Cursor, rank_slice: RankSlice) -> Iterator[tuple[list[Address], Cursor]]:
    """Yields a rank's samples of every step from `cursor` on, without end, each with the cursor after that step.

    Every lane draws the same streams in the same order, by smooth weighted round-robin: after any number of samples,
    each stream has had its share to within less than the number of streams per lane.
    """
    while True:
        shares = mixture.shares.at(cursor.step).tolist()
        drawn, credit = _draw(shares, [cursor.streams[name].credit for name in mixture.names], rank_slice.lane_samples)
        taken = [cursor.streams[name].taken for name in mixture.names]
        step: list[Address] = []
        for lane in range(rank_slice.first // rank_slice.lane_samples, -(-rank_slice.last // rank_slice.lane_samples)):
            before = lane * rank_slice.lane_samples
            step += _lane(mixture, lane, drawn, taken)[max(rank_slice.first - before, 0) : rank_slice.last - before]
        positions = {
            name: Position(taken[i] + drawn.count(i), credit[i], cursor.streams[name].fingerprint)
            for i, name in enumerate(mixture.names)
        }
        cursor = Cursor(cursor.step + 1, cursor.lanes, cursor.streams | positions)
        yield step, cursor


def _lane(mixture: OpenMixture, lane: int, drawn: list[int], taken: list[int]) -> list[Address]:
    """Returns a lane's samples of a step, in the order of the streams `drawn`."""
    queues = []
    for stream, order in enumerate(mixture.orders):
        numbers = order.at(lane, taken[stream], drawn.count(stream))
        queues.append(
            iter([Address(stream, order.turn(lane, taken[stream] + i), int(n)) for i, n in enumerate(numbers)])
        )
    return [next(queues[stream]) for stream in drawn]


def _draw(shares: list[float], credit: list[float], slots: int) -> tuple[list[int], list[float]]:
    """Returns the stream of each slot, and what every stream is owed afterwards."""
    owed, drawn = credit, []
    for _ in range(slots):
        owed = [have + share for have, share in zip(owed, shares, strict=True)]
        most = owed.index(max(owed))
        owed[most] -= 1.0
        drawn.append(most)
    return drawn, owed
