"""How files of released backbones hold experts, read as slices of the networks' own tensors.

A slice has `get_shape()` and is indexed by a region, as those of `safetensors` are; nothing else is read.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from framework.model.families import Family

OF_ONE_EXPERT = re.compile(r"(?P<layer>.*\.experts)\.(?P<expert>\d+)\.(?P<part>gate|up|down)_proj\.weight")
"""Names of the weights of one expert of a layer."""
STACKED = {"gate_up_proj": ("gate", "up"), "down_proj": ("down",)}
"""The tensors of all experts of a layer, and the parts of one expert that make them, row by row."""

SHOWN = 8
"""Names that a message lists."""

log = logging.getLogger(__name__)


class Slice(Protocol):
    """A tensor in a file."""

    def get_shape(self) -> list[int]:
        """Its shape."""
        ...

    def __getitem__(self, region: tuple[slice, ...]) -> Tensor:
        """The values of a region."""
        ...


class Transposed:
    """A tensor `(experts, columns, rows)` read as `(experts, rows, columns)`."""

    def __init__(self, source: Slice) -> None:
        self.source = source

    def get_shape(self) -> list[int]:
        """See `Slice`."""
        *experts, columns, rows = self.source.get_shape()
        return [*experts, rows, columns]

    def __getitem__(self, region: tuple[slice, ...]) -> Tensor:
        """See `Slice`."""
        experts, rows, columns = region
        return self.source[experts, columns, rows].transpose(1, 2)


class Stacked:
    """Matrices of single experts, read as one tensor `(experts, rows, columns)`; an expert's parts lie one below the
    other.
    """

    def __init__(self, experts: Sequence[Sequence[Slice]]) -> None:
        self.experts = experts

    def get_shape(self) -> list[int]:
        """See `Slice`."""
        shapes = [part.get_shape() for part in self.experts[0]]
        return [len(self.experts), sum(rows for rows, _ in shapes), shapes[0][1]]

    def __getitem__(self, region: tuple[slice, ...]) -> Tensor:
        """See `Slice`."""
        experts, rows, columns = region
        every = slice(None)
        return torch.stack([torch.cat([part[every, columns] for part in of])[rows] for of in self.experts[experts]])


def stack_experts(sources: Mapping[str, Slice], folder: Path) -> dict[str, Slice]:
    """`sources`, of the checkpoint in `folder`, with the matrices of single experts as the tensors of their layers.

    Raises `ValueError` where an expert lacks one.
    """
    layers: dict[str, dict[tuple[int, str], Slice]] = defaultdict(dict)
    others: dict[str, Slice] = {}
    for name, source in sources.items():
        if (match := OF_ONE_EXPERT.fullmatch(name)) is None:
            others[name] = source
        else:
            layers[match["layer"]][int(match["expert"]), match["part"]] = source
    for layer, parts in layers.items():
        count = 1 + max(expert for expert, _ in parts)
        every = [(expert, name) for expert in range(count) for names in STACKED.values() for name in names]
        if missing := [f"{layer}.{each[0]}.{each[1]}_proj.weight" for each in every if each not in parts]:
            raise ValueError(f"{folder}: lacks {', '.join(missing[:SHOWN])}; download the checkpoint again")
        for tensor, names in STACKED.items():
            others[f"{layer}.{tensor}"] = Stacked([[parts[expert, name] for name in names] for expert in range(count)])
    return others


def without_unused(sources: Mapping[str, Any], family: Family, folder: Path) -> dict[str, Any]:
    """`sources` without the weights that the network does not have (see `Family.unused`), which the log counts."""
    unused = [name for name in sources if family.is_unused(name)]
    if unused:
        log.warning("%s: %d weights (%s, ...) have no place in the network; an export lacks them", folder, len(unused),
                    unused[0])  # fmt: skip
    return {name: source for name, source in sources.items() if name not in set(unused)}
