"""The address of a sample in a mixture, shared by order, loader and ledger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Address(NamedTuple):
    """A sample of a mixture in one pass over its stream."""

    stream: int
    """The stream's place in the mixture."""
    turn: int
    """The pass over the stream, from 0."""
    sample: int
    """The sample's number in the stream, see `StreamOrder`."""


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """The description of a stream in the ledger."""

    name: str
    """Its name in the mixture."""
    samples: int
    """Samples of one pass."""
    fingerprint: str
    """Hash of its data and of its order."""
    share: float
    """Its share of a step's samples at the stage's first step."""
