"""Reads fields of a request's JSON; every fault names its field."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from framework.scene.types import FloatArray

MOST_ITEMS = 1 << 22
"""The most numbers of one field."""
NUMBERS: set[type[Any]] = {int, float, type(None)}
"""Types of JSON's values that stand for a number."""


class FieldError(ValueError):
    """A field of a request that cannot be used.

    Args:
        field: The field, as `cameras[0].intrinsic`.
        message: What is wrong, and the remedy.
        status: The HTTP status, 4xx.
    """

    def __init__(self, field: str, message: str, status: int = 422) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field, self.message, self.status = field, message, status


def mapping(value: Any, field: str, keys: Sequence[str]) -> Mapping[str, Any]:
    """`value`, an object with keys among `keys`. Raises `FieldError` for another type or an unknown key."""
    if not isinstance(value, dict):
        raise FieldError(field, f"is {kind(value)}, not an object; give {', '.join(keys)}")
    if unknown := [key for key in value if key not in keys]:
        name = ascii(unknown[0][:100])[1:-1]  # a lone surrogate in it could not be answered
        raise FieldError(f"{field}.{name}" if field else name, f"is unknown; there are {', '.join(keys)}")
    return value


def items(value: Any, field: str, most: int) -> Sequence[Any]:
    """`value`, a list of at most `most` items. Raises `FieldError` for another type and for more."""
    if not isinstance(value, list):
        raise FieldError(field, f"is {kind(value)}, not a list")
    if len(value) > most:
        raise FieldError(field, f"has {len(value)} items; give {most} at most")
    return value


def text(value: Any, field: str, most: int = 100_000) -> str:
    """`value`, a text of at most `most` characters. Raises `FieldError` for another type and for a longer one."""
    if not isinstance(value, str):
        raise FieldError(field, f"is {kind(value)}, not a text")
    if len(value) > most:
        raise FieldError(field, f"has {len(value)} characters; give {most} at most")
    return value


def number(value: Any, field: str) -> float:
    """`value`, a finite number. Raises `FieldError` for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300 or value != value:
        raise FieldError(field, f"is {kind(value)}, not a finite number")
    return float(value)


def numbers(value: Any, field: str, columns: int | None = None) -> FloatArray:
    """An array of numbers: nested lists, or rows of `columns` little-endian float32 in Base64.

    Null is NaN, as of a velocity that is unknown; whether it may be is left to the check of scenes. Raises `FieldError`
    for anything else, and more than `MOST_ITEMS` numbers.
    """
    if isinstance(value, str) and columns is not None:
        data = decoded(value, field)
        if len(data) % (4 * columns):
            raise FieldError(field, f"{len(data)} bytes are no rows of {columns} float32; encode whole rows")
        array: FloatArray = np.frombuffer(data, "<f4").reshape(-1, columns).astype(np.float64)
    else:
        if not isinstance(value, list):
            raise FieldError(field, f"is {kind(value)}, not a list of numbers")
        try:
            given = np.array(value)
            types = set(map(type, given.flat)) if given.dtype == object else NUMBERS
            if given.dtype.kind not in "iufO" or not types <= NUMBERS:
                raise ValueError("texts or booleans, of which numpy would make numbers")
            array = given.astype(np.float64)
        except (ValueError, OverflowError) as error:
            raise FieldError(field, "is no array of numbers; give rows of equal length") from error
        if columns is not None and not array.size:
            array = array.reshape(0, columns)
    if array.size > MOST_ITEMS:
        raise FieldError(field, f"has {array.size} numbers; give {MOST_ITEMS} at most")
    return array


def decoded(value: str, field: str) -> bytes:
    """The bytes of a Base64 text, or of a `data:` URI. Raises `FieldError` for anything else."""
    if value.startswith("data:"):
        head, comma, value = value.partition(",")
        if not comma or not head.endswith(";base64"):
            raise FieldError(field, "is a data: URI without ;base64,; encode it so")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise FieldError(field, "is no Base64; encode the file's bytes so") from error


def kind(value: Any) -> str:
    """A JSON value's type in JSON's words."""
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object"}
    return names.get(type(value), "null")
