"""Packs samples of uneven length into rows of at most a given number of tokens."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Returns rows of sample numbers, each sample in one row and no row above `budget` tokens; the fullest row first.

    Packing `lengths` into the budget gives the number of rows. The smallest capacity that needs no more rows then evens
    them out, which saves padding and avoids one long row (MULTIFIT: Coffman, Garey and Johnson 1978, SIAM J. Comput.
    7). The same lengths give the same rows. Raises `ValueError` for a sample above the budget.
    """
    longest = max(lengths, default=0)
    if longest > budget:
        raise ValueError(
            f"data.pack: sample {lengths.index(longest)} has {longest} tokens, a row holds {budget}: raise data.pack"
        )
    count = len(_fewest_rows(lengths, budget))
    capacities = range(max(longest, -(-sum(lengths) // max(count, 1))), budget)
    enough = bisect_left(capacities, True, key=lambda capacity: len(_fewest_rows(lengths, capacity)) <= count)
    rows = _fewest_rows(lengths, capacities[enough] if enough < len(capacities) else budget)
    return sorted(map(sorted, rows), key=lambda row: -sum(lengths[index] for index in row))


def _fewest_rows(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Returns the best fit over the longest samples first, or over the samples as they come if that takes fewer rows.

    The former needs at most 11/9 of the fewest possible rows plus a constant (Johnson et al. 1974, SIAM J. Comput. 3);
    the latter never more than opening a row whenever the last is full.
    """
    given = range(len(lengths))
    falling = sorted(given, key=lambda index: -lengths[index])
    return min((_best_fit(lengths, order, capacity) for order in (falling, given)), key=len)


def _best_fit(lengths: Sequence[int], order: Sequence[int], capacity: int) -> list[list[int]]:
    """Puts each sample into the fullest row that still has room for it."""
    rows: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # room left in each row and its number, the least room first
    for index in order:
        tightest = bisect_left(rooms, (lengths[index], 0))
        if tightest == len(rooms):
            rows.append([])
            room, row = capacity, len(rows) - 1
        else:
            room, row = rooms.pop(tightest)
        rows[row].append(index)
        insort(rooms, (room - lengths[index], row))
    return rows
