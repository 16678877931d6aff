"""Says, before a run starts or is queued, what of its recipe does not go with what earlier runs have saved: changed
values that apply when it goes on or cannot, and a run to start from that has no weights.
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from framework.recipe.composition import Composition
from framework.recipe.problem import Key, Problem, RecipeError, dotted
from framework.recipe.renames import renames
from framework.recipe.resume import TASK, Point, changes
from framework.run.layout import CHECKPOINTS, committed_steps
from framework.run.progress import newest_saved, recipe_file_of, saved_state

WEIGHTS: Key = ("task", "init_from")


def resumption_problems(composition: Composition) -> list[Problem]:
    """The values of the recipe that differ from those of the checkpoint which its run goes on from, in the order of
    the tree: warnings for those that are applied, problems for those that cannot be.

    Empty for a run without a checkpoint.
    """
    folder = Path(str(composition.tree.get("run", {}).get("folder")))
    if composition.tree.get("task", {}).get("_target_") != TASK or (saved := newest_saved(folder)) is None:
        return []
    file = recipe_file_of(folder, saved.attempt)
    if not file.is_file():
        return []
    old = renames().tree(yaml.safe_load(file.read_text(encoding="utf-8")))
    tree = yaml.safe_load(yaml.safe_dump(composition.tree, allow_unicode=True))  # as a run's folder stores it
    point = Point(str(saved_state(saved).get("stage")), saved.step)
    problems = []
    for change in changes(old, tree, point):
        key = _weights_key(composition) if change.key == WEIGHTS else change.key
        place = composition.place(key)
        problems.append(
            Problem(composition.origin(key), dotted(place), change.message, warning=change.effect == "applied")
        )
    return problems


def weights_problems(composition: Composition, warning: bool) -> list[Problem]:
    """A problem, or a `warning`, where the run is to start from a run that has saved no weights so far."""
    run, task = composition.tree.get("run", {}), composition.tree.get("task", {})
    first = task.get("init_from") if task.get("_target_") == TASK else None
    if not first or newest_saved(Path(str(run.get("folder")))) or committed_steps(Path(str(first)) / CHECKPOINTS):
        return []
    name = Path(str(first)).name
    command = f" (python -m framework recipe={name})" if name in composition.catalogue.recipes() else ""
    key = _weights_key(composition)
    message = (
        f"{first} has no checkpoint to start from: train that run first{command}, or write {dotted(key)}=FOLDER of "
        f"another run, or {dotted(key)}=null to start from the backbone's weights"
    )
    return [Problem(composition.origin(key), dotted(key), message, warning=warning)]


def _weights_key(composition: Composition) -> Key:
    """Where the recipe says which weights the run starts from: at its root, which the task reads, or in the task."""
    tree = composition.tree
    at_root = "init_from" in tree and tree["init_from"] == tree["task"].get("init_from")
    return WEIGHTS[1:] if at_root else WEIGHTS


def refuse_start(composition: Composition) -> None:
    """Raise `RecipeError` where the run has no weights to start from, or with every changed value with which it cannot
    go on; print those that apply.
    """
    problems = [*weights_problems(composition, warning=False), *resumption_problems(composition)]
    if any(not problem.warning for problem in problems):
        raise RecipeError(problems)
    for problem in problems:
        print(problem, file=sys.stderr)
