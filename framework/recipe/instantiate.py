"""Instantiates a checked recipe. No target is imported that the allow list refuses (contract 9)."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra.utils
from hydra.errors import InstantiationException

from framework.recipe.allow import TargetNotAllowed, verify
from framework.recipe.annotation import NO_FILE, is_component
from framework.recipe.composition import Composition
from framework.recipe.examine import enabled_plugins, findings
from framework.recipe.layers import children
from framework.recipe.overrides import split_reference
from framework.recipe.problem import Key, Origin, Problem, RecipeError, dotted


def instantiate(composition: Composition, key: Key = ("task",), inputs: bool = True) -> Any:
    """The object that the recipe describes at `key`. Its mappings and lists are plain ones.

    `inputs` says whether the recipe's input files must exist; without them only what reads no data works.

    Raises `RecipeError` with all problems of the check; before any target is called, with every target whose definition
    is not allowed; and where a constructor fails, with the key, the file and the constructor's error.
    """
    faults = [problem for problem in findings(composition) if not problem.warning]
    if faults := [problem for problem in faults if inputs or not problem.message.startswith(NO_FILE)]:
        raise RecipeError(faults)
    node = composition.tree
    for name in key:
        node = dict(children(node))[name]
    if refused := list(_refused(composition, node, key, enabled_plugins(composition))):
        raise RecipeError(refused)
    try:
        return hydra.utils.instantiate(node, _convert_="all")
    except InstantiationException as error:
        raise RecipeError([_failure(composition, key, error)]) from error


def _refused(composition: Composition, node: Any, key: Key, plugins: list[str]) -> Iterator[Problem]:
    for at, target in _targets(node, key):
        try:
            verify(target, plugins)
        except (TargetNotAllowed, ImportError, AttributeError) as error:
            yield Problem(composition.origin(at), dotted(at), f"cannot be used: {error}")


def _targets(node: Any, at: Key) -> Iterator[tuple[Key, str]]:
    if is_component(node):
        yield (*at, "_target_"), node["_target_"]
    for name, value in children(node):
        yield from _targets(value, (*at, name))


def _failure(composition: Composition, key: Key, error: Exception) -> Problem:
    """The problem behind Hydra's error, whose message names the key below `key`, and whose cause the fault."""
    named = re.search(r"full_key: (\S+)", str(error))
    at = (*key, *(split_reference(named[1]) if named else ()))
    cause = error.__cause__
    message = f"{type(cause).__name__}: {cause}" if cause is not None else str(error).splitlines()[0]
    if cause is not None and (frames := traceback.extract_tb(cause.__traceback__)):
        message += f" (raised in {Path(frames[-1].filename).name}:{frames[-1].lineno})"
    target = re.match(r"Error in call to target '([^']+)'", str(error))
    origin: Origin = composition.origin((*at, "_target_"))
    return Problem(
        origin, dotted(at), f"{target[1] if target else 'the component'} could not be constructed: {message}"
    )
