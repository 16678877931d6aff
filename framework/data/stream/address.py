"""Which sample of which stream: what order, loader and ledger say to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Address(NamedTuple):
    """A sample of a stream in its pass `turn` over it."""

    stream: int
    turn: int
    sample: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A stream in a few words, for the ledger. `share` is that at the stage's first step."""

    name: str
    samples: int
    fingerprint: str
    share: float
