"""The check: compose a recipe and collect everything that is wrong with it, before anything of it is imported."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from framework.recipe.catalogue import Catalogue
from framework.recipe.composition import Composition
from framework.recipe.examine import findings
from framework.recipe.problem import Problem, RecipeError
from framework.recipe.stored import from_command_line


def check(overrides: Sequence[str], catalogue: Catalogue | None = None) -> tuple[Composition | None, list[Problem]]:
    """The composed recipe, None where it cannot be composed, and all its problems and warnings."""
    try:
        composition = from_command_line(overrides, catalogue)
    except RecipeError as error:
        return None, list(error.problems)
    return composition, findings(composition)


def checked(overrides: Sequence[str], catalogue: Catalogue | None = None, warn: bool = True) -> Composition:
    """The composed recipe, free of problems. With `warn` its warnings are printed. Raises `RecipeError`."""
    composition, problems = check(overrides, catalogue)
    if composition is None or any(not problem.warning for problem in problems):
        raise RecipeError(problems)
    for warning in problems if warn else []:
        print(warning, file=sys.stderr)
    return composition
