"""torch.compile (Ansel et al. 2024, ASPLOS) of the model or its blocks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from framework.recipe.component import component


@component
@dataclass(frozen=True)
class Compilation:
    """Compiles the model with torch.compile. Each graph break is logged once, with torch's reason and the line."""

    scope: Literal["none", "blocks", "whole"] = "none"
    """`none`; `blocks`, each by itself, where one compilation serves all of a kind; or the `whole` model, whose graph
    breaks at data-dependent control flow."""
    backend: str = "inductor"
    """Backend of torch.compile."""

    def apply(self, model: nn.Module, blocks: Iterable[nn.Module]) -> None:
        """Mark `scope` for compilation, in place; it is compiled when it first runs. Raises `ValueError` for an unknown
        backend.
        """
        if self.scope == "none":
            return
        if self.backend not in torch.compiler.list_backends(exclude_tags=None):
            known = ", ".join(torch.compiler.list_backends())
            raise ValueError(f"parallel.compilation.backend: {self.backend}; there are {known}")
        torch._logging.set_logs(graph_breaks=True)
        for module in blocks if self.scope == "blocks" else (model,):
            module.compile(backend=self.backend)
