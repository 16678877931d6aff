"""The bounds that an annotation declares: `Annotated[float, Interval(gt=0, le=10)]`, read from source."""

from __future__ import annotations

import ast
import struct
from collections.abc import Sequence
from typing import Any

from annotated_types import Ge, Gt, Interval, Le, Lt, MinLen

from framework.recipe.expression import Scope, Unknown, evaluate
from framework.recipe.signature import Module

KINDS: dict[str, type[Any]] = {each.__name__: each for each in (Ge, Gt, Interval, Le, Lt, MinLen)}
SMALLEST = 2.0**-126
"""The smallest positive number that float32 holds in full; what is below is zero on most devices."""
LARGEST = 3.4e38
"""Below the largest number of float32."""


def read_bounds(metadata: Sequence[ast.expr], source: Module) -> list[Any]:
    """The bounds among an annotation's metadata, as objects of `annotated_types`. Other metadata are left out."""
    bounds = []
    for each in metadata:
        kind = KINDS.get(ast.unparse(each.func).rpartition(".")[2]) if isinstance(each, ast.Call) else None
        if kind is None or not isinstance(each, ast.Call):
            continue
        try:
            args = [evaluate(value, Scope(source)) for value in each.args]
            bounds.append(kind(*args, **{str(word.arg): evaluate(word.value, Scope(source)) for word in each.keywords}))
        except Unknown as error:
            raise ValueError(
                f"{source.file}:{each.lineno}: the bounds {ast.unparse(each)} are no plain numbers"
            ) from error
    return bounds


def limits(bounds: Sequence[Any]) -> dict[str, Any]:
    """The bounds' limits by kind: gt, ge, lt, le."""
    merged: dict[str, Any] = {}
    for bound in bounds:
        for name in ("gt", "ge", "lt", "le"):
            if (value := getattr(bound, name, None)) is not None:
                merged[name] = value
    return merged


def fewest(bounds: Sequence[Any]) -> int:
    """The fewest entries of a list or mapping."""
    return max((bound.min_length for bound in bounds if isinstance(bound, MinLen)), default=0)


def within(value: float, bounds: Sequence[Any]) -> bool:
    """Whether a number lies within all bounds, open ones as float32 too: tensors hold it as that. NaN lies in none."""
    limit, rounded = limits(bounds), as_float32(value)
    return (
        not ("gt" in limit and not min(value, rounded) > limit["gt"])
        and not ("ge" in limit and not value >= limit["ge"])
        and not ("lt" in limit and not max(value, rounded) < limit["lt"])
        and not ("le" in limit and not value <= limit["le"])
    )


def as_float32(value: float) -> float:
    """A number as devices hold it in float32: what is too small for it is 0, and what is too large stays."""
    if not isinstance(value, float) or not abs(value) < LARGEST:
        return value
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    return rounded if abs(rounded) >= SMALLEST else 0.0


def describe(bounds: Sequence[Any]) -> str:
    """The bounds in words, to follow a noun: `from 1 to 65_535`, `above 0 and at most 10`."""
    limit = limits(bounds)
    parts = []
    if "ge" in limit and "le" in limit:
        parts.append(f"from {number(limit['ge'])} to {number(limit['le'])}")
    else:
        words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
        parts += [f"{word} {number(limit[name])}" for name, word in words.items() if name in limit]
    return " and ".join(parts)


def number(value: float) -> str:
    """A number as messages print it: whole ones with their thousands apart, as YAML reads them."""
    return f"{value:_}" if isinstance(value, int) else f"{value:g}"
