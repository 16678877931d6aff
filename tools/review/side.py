"""One side of the review, in a process of its own: `python -m tools.review.side ROOT LOOK [RECIPE ...]` prints JSON.

The process imports `framework` from its working directory and reads the recipes below ROOT, all unless some are named.
LOOK says how: `described` composes and checks each, `differing` compares each with its parent, `planned` plans each and
says on standard error which.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from framework.recipe.catalogue import Catalogue
from framework.recipe.check import check
from framework.recipe.problem import RecipeError, dotted
from framework.recipe.show import compared, diff, written_values

FIGURES = ("tokens_per_step", "peak_gib", "device_hours")
"""What the comment shows of a stage's plan."""


def described(name: str, catalogue: Catalogue) -> dict[str, Any]:
    """The recipe's resolved values with their origins, its targets and its problems."""
    composition, problems = check([f"recipe={name}"], catalogue)
    report: dict[str, Any] = {"problems": [[str(problem), problem.warning] for problem in problems]}
    report |= {"values": {}, "valid": False}
    if composition is None:
        return report
    try:
        values = written_values(composition)
    except RecipeError as error:
        return report | {"problems": [[str(problem), problem.warning] for problem in error.problems]}
    for key, value in values.items():
        report["values"][dotted(key)] = [value, str(composition.origin(key))]
    report["valid"] = not any(not problem.warning for problem in problems)
    return report


def differing(name: str, catalogue: Catalogue) -> dict[str, Any]:
    """The recipe's differences from what `python -m framework diff` compares it with, and that one's title."""
    try:
        title, old, new = compared([f"recipe={name}"], catalogue)
        return {"against": title, "lines": diff(old, new).splitlines()}
    except RecipeError as error:
        return {"against": str(error).splitlines()[0], "lines": []}


def planned(name: str, catalogue: Catalogue) -> Any:
    """The plan of each stage, or what keeps the recipe from being planned."""
    print(f"review: planning {name}", file=sys.stderr, flush=True)
    from framework.training.planner.stage_plan import planned_task, read_hardware, stage_plans

    composition, _ = check([f"recipe={name}"], catalogue)
    assert composition is not None
    try:
        stages = stage_plans(planned_task(composition), read_hardware({}))
        return [{"name": stage.name, **{key: getattr(stage, key) for key in FIGURES}} for stage in stages]
    except (RecipeError, TypeError, ValueError, OSError) as error:
        return str(error).splitlines()[0]


LOOKS: dict[str, Callable[[str, Catalogue], Any]] = {
    "described": described,
    "differing": differing,
    "planned": planned,
}


def main(arguments: list[str]) -> int:
    """Print what is asked for as one JSON object by recipe."""
    gc.disable()  # the process imports and composes much, and ends: looking for garbage takes a tenth of its time
    root, look, *names = arguments
    catalogue = Catalogue(Path(root))
    print(json.dumps({name: LOOKS[look](name, catalogue) for name in names or catalogue.recipes()}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
