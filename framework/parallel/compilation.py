"""torch.compile (Ansel et al. 2024, ASPLOS): what is compiled, and what stands in its way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn


@dataclass(frozen=True)
class Compilation:
    """Compiles nothing (`scope` none), every block by itself (`blocks`: one compilation serves all of a kind), or the
    `whole` model, whose graph breaks where data decide what is computed.

    `backend` is torch.compile's. Each place where a graph breaks is logged once, with torch's reason and the line.
    """

    scope: Literal["none", "blocks", "whole"] = "none"
    backend: str = "inductor"

    def apply(self, model: nn.Module, blocks: Iterable[nn.Module]) -> None:
        """Have what `scope` says compiled in place, when it first runs. Raises `ValueError` for an unknown backend."""
        if self.scope == "none":
            return
        if self.backend not in torch.compiler.list_backends(exclude_tags=None):
            known = ", ".join(torch.compiler.list_backends())
            raise ValueError(f"parallel.compilation.backend: {self.backend}; there are {known}")
        torch._logging.set_logs(graph_breaks=True)
        for module in blocks if self.scope == "blocks" else (model,):
            module.compile(backend=self.backend)
