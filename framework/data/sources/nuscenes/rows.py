"""Rows of nuScenes' tables, value by value: one that can't be used is counted, and the others are read."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any

from framework.data.sources.base import leads_out
from framework.data.sources.nuscenes.tables import AGAIN
from framework.scene.check import LARGEST, SMALLEST
from framework.scene.types import SceneError

Check = Callable[[Any], Any]
"""Returns a field's value as it is used. Raises `ValueError` with what the value is not."""


class Rows:
    """The tables of a version, read row by row.

    Args:
        folder: The version's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.left_out: Counter[str] = Counter()

    def leave_out(self, table: str, field: str, reason: str) -> None:
        """Counts a row that can't be used, or a part of one."""
        self.left_out[f"{self.folder}/{table}.json: {field}: {reason}; {AGAIN}"] += 1

    def read(self, table: str, **fields: Check) -> Iterator[tuple[int, Any]]:
        """Yields the number of each row of a table and the values of its `fields`. Rows without one of them, with a
        value that is none, or with the `token` of an earlier row are left out. A row is freed once it is read.

        Raises `SceneError` for a table that is missing or no list in JSON.
        """
        rows = self._load(table)
        count = len(rows)
        rows.reverse()
        seen: set[str] = set()
        while rows:
            row = rows.pop()
            values = self._values(table, row, fields)
            if values is None:
                continue
            if row.get("token") in seen:
                self.leave_out(table, "token", "repeats that of an earlier row")
                continue
            seen.add(row.get("token"))
            yield count - len(rows) - 1, values

    def joined(self, table: str, field: str, token: str, other: str, known: Container[str]) -> bool:
        """Returns whether the row `token` of the table `other` is `known`; counts the row of `table` where it isn't."""
        if token in known:
            return True
        self.leave_out(table, field, f"no row of {other}.json that can be used")
        return False

    def _values(self, table: str, row: Any, fields: dict[str, Check]) -> list[Any] | None:
        """Returns the values of a row; None for one that can't be used, which is counted."""
        if not isinstance(row, dict):
            self.leave_out(table, "row", "no object")
            return None
        values = []
        for field, check in fields.items():
            if field not in row:
                self.leave_out(table, field, "missing")
                return None
            try:
                values.append(check(row[field]))
            except (ValueError, OverflowError) as error:  # the latter of a whole number beyond every float
                self.leave_out(table, field, f"no {error}" if isinstance(error, ValueError) else "too large")
                return None
        return values

    def _load(self, table: str) -> list[Any]:
        path = self.folder / f"{table}.json"
        try:
            rows = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise SceneError(f"{path}: the table is missing; {AGAIN}") from None
        except ValueError as error:
            raise SceneError(f"{path}: is not JSON ({error}); {AGAIN}") from error
        if not isinstance(rows, list):
            raise SceneError(f"{path}: holds a {type(rows).__name__}, not a list of rows; {AGAIN}")
        return rows


def text(value: Any) -> str:
    """Returns a text that is not empty."""
    if not isinstance(value, str) or not value:
        raise ValueError("text")
    return value


def within(value: Any) -> str:
    """Returns a path in the dataset's folder."""
    if leads_out(text(value)):
        raise ValueError("path in the dataset's folder")
    return str(value)


def link(value: Any) -> str:
    """Returns the token of a neighbour in time; empty where there is none."""
    return "" if value is None else value if value == "" else text(value)


def flag(value: Any) -> bool:
    """Returns a truth value."""
    if not isinstance(value, bool):
        raise ValueError("truth value")
    return value


def whole(value: Any) -> int:
    """Returns a whole number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value % 1:
        raise ValueError("whole number")
    return int(value)


def pixels(value: Any) -> int:
    """Returns a number of pixels; 0 where there is none."""
    return 0 if value is None else whole(value)


def numbers(count: int) -> Check:
    """Returns what reads `count` numbers as a tuple."""

    def check(value: Any) -> tuple[float, ...]:
        if not isinstance(value, list) or len(value) != count or not all(map(_is_number, value)):
            raise ValueError(f"list of {count} numbers")
        return tuple(value)

    return check


def size(value: Any) -> tuple[float, ...]:
    """Returns three sizes (m) that an object may have."""
    if not isinstance(value, list) or len(value) != 3 or not all(map(_is_size, value)):
        raise ValueError(f"list of 3 positive numbers up to {LARGEST:.0f} m")
    return tuple(value)


def matrix(value: Any) -> tuple[tuple[float, ...], ...]:
    """Returns the rows of a matrix of 3 x 3 numbers; none where the value is no such matrix: only cameras need one."""
    try:
        return tuple(numbers(3)(row) for row in value) if len(value) == 3 else ()
    except (TypeError, ValueError):
        return ()


def _is_size(value: Any) -> bool:
    return _is_number(value) and SMALLEST <= value <= LARGEST


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
