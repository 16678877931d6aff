"""torch.compile (Ansel et al. 2024, ASPLOS) of the model or its blocks."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from framework.recipe.component import component
from framework.recipe.ranges import PositiveCount


@component
@dataclass(frozen=True)
class Compilation:
    """Compiles the model with torch.compile, for rows of any length: changing lengths compile nothing again. Each graph
    break and each recompilation is logged, with torch's reason and the line."""

    scope: Literal["none", "blocks", "whole"] = "none"
    """`none`; `blocks`, each by itself, where one compilation serves all of a kind; or the `whole` model, whose graph
    breaks at data-dependent control flow."""
    backend: str = "inductor"
    """Backend of torch.compile."""
    graphs: PositiveCount = 8
    """Most graphs of one kind of block; beyond, torch runs it uncompiled, and warns."""

    def apply(self, model: nn.Module, blocks: Iterable[nn.Module]) -> None:
        """Mark `scope` for compilation, in place; it is compiled when it first runs. Raises `ValueError` for an unknown
        backend.
        """
        if self.scope == "none":
            return
        if self.backend not in torch.compiler.list_backends(exclude_tags=None):
            known = ", ".join(torch.compiler.list_backends())
            raise ValueError(f"parallel.compilation.backend: {self.backend}; there are {known}")
        torch._logging.set_logs(graph_breaks=True, recompiles=True)
        torch._dynamo.config.recompile_limit = self.graphs
        for module in blocks if self.scope == "blocks" else (model,):
            module.compile(backend=self.backend, dynamic=True)

    def keep_in(self, folder: Path) -> None:
        """Keep what Inductor compiles in `folder`, where the next attempt of the run finds it, unless the environment
        names another place. To be called before anything is compiled.
        """
        if self.scope != "none":
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))

    def metrics(self) -> dict[str, float]:
        """The number of graphs that this process has compiled; nothing where nothing is compiled."""
        if self.scope == "none":
            return {}
        return {"compiled_graphs": float(torch._dynamo.utils.counters["stats"]["unique_graphs"])}
