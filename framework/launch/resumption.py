"""Says, before a run starts or is queued, which changed values of its recipe apply when it goes on, which cannot."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from framework.recipe.composition import Composition
from framework.recipe.problem import Problem, RecipeError, dotted
from framework.recipe.renames import renames
from framework.recipe.resume import TASK, Point, changes
from framework.run.progress import newest_saved, recipe_file_of, saved_state


def resumption_problems(composition: Composition) -> list[Problem]:
    """The values of the recipe that differ from those of the checkpoint which its run goes on from, in the order of
    the tree: warnings for those that are applied, problems for those that cannot be.

    Empty for a run without a checkpoint.
    """
    tree = yaml.safe_load(yaml.safe_dump(composition.tree, allow_unicode=True))  # as a run's folder stores it
    folder = Path(str(tree.get("run", {}).get("folder")))
    if tree.get("task", {}).get("_target_") != TASK or (saved := newest_saved(folder)) is None:
        return []
    file = recipe_file_of(folder, saved.attempt)
    if not file.is_file():
        return []
    old = renames().tree(yaml.safe_load(file.read_text(encoding="utf-8")))
    point = Point(str(saved_state(saved).get("stage")), saved.step)
    problems = []
    for change in changes(old, tree, point):
        place = composition.place(change.key)
        problems.append(
            Problem(composition.origin(change.key), dotted(place), change.message, warning=change.effect == "applied")
        )
    return problems


def refuse_changes(composition: Composition) -> None:
    """Raise `RecipeError` with every changed value with which the run cannot go on; print those that apply."""
    problems = resumption_problems(composition)
    if any(not problem.warning for problem in problems):
        raise RecipeError(problems)
    for problem in problems:
        print(problem, file=sys.stderr)
