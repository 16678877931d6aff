"""Numbers in answers: decimals of bounded length, which a grammar can describe and a small model can learn."""

from __future__ import annotations

from framework.scene.types import SceneError

BOUND = 1000
"""Exclusive bound of numbers: three digits before the point are enough for a scene in metres."""


def decimal_pattern(decimals: int) -> str:
    """A regular expression of the numbers that `spell_decimal` writes, for Python and llguidance, without groups."""
    fraction = rf"\.[0-9]{{{decimals}}}" if decimals else ""
    return f"-?(?:0|[1-9][0-9]{{0,2}}){fraction}"


def positive_pattern(decimals: int) -> str:
    """Like `decimal_pattern`, of the numbers above zero."""
    if not decimals:
        return "[1-9][0-9]{0,2}"
    fractions = "|".join(rf"0{{{zeros}}}[1-9][0-9]{{{decimals - 1 - zeros}}}" for zeros in range(decimals))
    return rf"(?:[1-9][0-9]{{0,2}}\.[0-9]{{{decimals}}}|0\.(?:{fractions}))"


def spell_decimal(value: float, decimals: int, field: str) -> str:
    """Write `value` with `decimals` places; zero has no sign.

    Raises `SceneError` with `field` for NaN, infinity and absolute values of `BOUND` or more.
    """
    text = f"{value:.{decimals}f}"
    if not abs(float(text)) < BOUND:
        raise SceneError(f"{field} is {value:g}: to be spelled it must be finite and below {BOUND}; crop or drop it")
    return text.removeprefix("-") if float(text) == 0 else text
