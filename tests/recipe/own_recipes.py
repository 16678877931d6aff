"""Recipes that a test writes next to the project's own."""

from __future__ import annotations

from collections.abc import Callable

from framework.recipe.catalogue import Catalogue
from framework.recipe.check import check

HEADER = "# @package _global_\n"

Written = Callable[[str, str], Catalogue]


def problems_of(catalogue: Catalogue | None, *words: str) -> list[str]:
    return [str(problem) for problem in check(words, catalogue)[1]]
