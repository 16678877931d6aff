"""Numbers in answers: decimals of bounded length, so that a grammar can spell them and a small model learn them."""

from __future__ import annotations

from framework.scene.types import SceneError

BOUND = 1000
"""Numbers are smaller than this: three digits before the point are enough for a scene in metres."""


def decimal_pattern(decimals: int) -> str:
    """A regular expression (Python's and llguidance's alike, no groups) of the numbers that `spell_decimal` writes."""
    fraction = rf"\.[0-9]{{{decimals}}}" if decimals else ""
    return f"-?(?:0|[1-9][0-9]{{0,2}}){fraction}"


def positive_pattern(decimals: int) -> str:
    """As `decimal_pattern`, of the numbers above zero."""
    if not decimals:
        return "[1-9][0-9]{0,2}"
    fractions = "|".join(rf"0{{{zeros}}}[1-9][0-9]{{{decimals - 1 - zeros}}}" for zeros in range(decimals))
    return rf"(?:[1-9][0-9]{{0,2}}\.[0-9]{{{decimals}}}|0\.(?:{fractions}))"


def spell_decimal(value: float, decimals: int, field: str) -> str:
    """`value` with `decimals` places; zero has no sign.

    Raises `SceneError`, naming `field`, for NaN, infinity and numbers of `BOUND` or more.
    """
    text = f"{value:.{decimals}f}"
    if not abs(float(text)) < BOUND:
        raise SceneError(f"{field} is {value:g}: to be spelled it must be finite and below {BOUND}; crop or drop it")
    return text.removeprefix("-") if float(text) == 0 else text
