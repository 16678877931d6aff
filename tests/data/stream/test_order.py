"""The order of a stream's samples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.data.stream.order import StreamOrder

SHARDS = st.lists(st.integers(1, 9), min_size=1, max_size=12).map(lambda counts: np.array(counts, dtype=np.int64))


def lane_length(order: StreamOrder, lane: int) -> int:
    """Samples of a lane in one pass, found by asking where the next one begins."""
    place = 0
    while order.turn(lane, place) == 0:
        place += 1
    return place


@given(SHARDS, st.integers(1, 4), st.integers(1, 7), st.integers(0, 3))
def test_every_pass_holds_every_sample_once(counts: np.ndarray, lanes: int, block: int, turn: int) -> None:
    if counts.sum() < lanes:
        return
    order = StreamOrder("any", counts, 3, lanes, block)
    seen = []
    for lane in range(lanes):
        length = lane_length(order, lane)
        seen += order.at(lane, turn * length, length).tolist()
    assert sorted(seen) == list(range(counts.sum()))


@given(SHARDS, st.integers(0, 40), st.integers(0, 40))
def test_the_order_is_the_same_however_it_is_asked_for(counts: np.ndarray, start: int, count: int) -> None:
    whole = StreamOrder("any", counts, 3, block=4).at(0, 0, start + count)
    assert whole[start:].tolist() == StreamOrder("any", counts, 3, block=4).at(0, start, count).tolist()


@given(SHARDS)
def test_a_sample_lies_where_its_number_says(counts: np.ndarray) -> None:
    order = StreamOrder("any", counts, 0)
    places = [(shard, place) for shard, count in enumerate(counts) for place in range(count)]
    assert [order.locate(sample) for sample in range(counts.sum())] == places


def test_a_lane_needs_its_share_of_the_shards_and_a_block_few_of_them() -> None:
    order = StreamOrder("large", np.full(64, 32, dtype=np.int64), 0, lanes=4, block=128)
    lanes = [{order.locate(int(s))[0] for s in order.at(lane, 0, 512)} for lane in range(4)]
    assert all(len(shards) == 16 for shards in lanes)
    assert len(set.union(*lanes)) == 64
    assert len({order.locate(int(s))[0] for s in order.at(0, 0, 128)}) == 4


def test_passes_seeds_and_streams_have_orders_of_their_own() -> None:
    counts = np.full(10, 10, dtype=np.int64)
    order = StreamOrder("one", counts, 0)
    orders = [order.at(0, 0, 100), order.at(0, 100, 100)]
    orders += [StreamOrder("two", counts, 0).at(0, 0, 100), StreamOrder("one", counts, 1).at(0, 0, 100)]
    assert len({tuple(o.tolist()) for o in orders}) == 4


def test_the_fingerprint_changes_with_all_that_the_order_depends_on() -> None:
    counts = np.full(10, 10, dtype=np.int64)
    others = [(counts, 1, 1, 16), (counts, 0, 2, 16), (counts, 0, 1, 8), (counts + 1, 0, 1, 16)]
    prints = {StreamOrder("s", counts, 0, 1, 16).fingerprint()}
    prints |= {StreamOrder("s", *other).fingerprint() for other in others}
    assert len(prints) == 5


def test_neighbours_are_mixed_beyond_their_shard() -> None:
    order = StreamOrder("large", np.full(100, 50, dtype=np.int64), 0, block=1000)
    shards = np.array([order.locate(int(s))[0] for s in order.at(0, 0, 1000)])
    assert (shards[1:] == shards[:-1]).mean() < 0.1


def test_fewer_samples_than_lanes_is_an_error_that_names_the_stream() -> None:
    with pytest.raises(ValueError, match=r"stream small: 3 samples for data\.canonical_nodes: 4"):
        StreamOrder("small", np.array([3]), 0, lanes=4)
