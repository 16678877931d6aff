"""The values at a recipe's root that belong to no component, with their types and ranges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from framework.recipe.ranges import Seed


@dataclass(frozen=True)
class Run:
    """What a recipe says of its run."""

    name: str
    """The run's name."""
    seed: Seed
    """Seeds initialization, the order of samples and sampling."""
    folder: str
    """The run's folder, which is its identity."""


@dataclass(frozen=True)
class Root:
    """The values at the root."""

    run: Run
    """The run."""
    plugins: Sequence[str]
    """Plugins whose components the recipe may name."""
    search_metric: str | None
    """What a search optimises: EVAL/SECTION/METRIC."""
    search_direction: Literal["minimize", "maximize"]
    """Whether the search wants little or much of it."""
