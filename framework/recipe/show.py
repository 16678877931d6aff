"""A composition as people read it: the resolved tree with the origin of every value, and differences between two."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from framework.recipe.catalogue import Catalogue
from framework.recipe.compose import compose
from framework.recipe.composition import Composition
from framework.recipe.defaults import SCALE
from framework.recipe.exposure import unprintable
from framework.recipe.graft import NAME, RECIPES, STAGES
from framework.recipe.layers import child, children, value_at
from framework.recipe.overrides import COMMAND_LINE
from framework.recipe.problem import Key, Problem, RecipeError, dotted, nearest
from framework.recipe.stored import from_command_line, has_recipe, stored

_ORIGIN_COLUMN = 72
_AGAINST = "against="
_ABSENT = "(absent)"
FULL = "full"
"""The scale that changes nothing."""
IDENTITY: tuple[Key, ...] = (("run", "name"), ("run", "folder"))
"""What every run has of its own."""


def show(composition: Composition) -> str:
    """The resolved tree as YAML; behind each value the file and line, or the override, that set it.

    A mapping that is interpolated as a whole is shown once, where it is written; elsewhere its reference stands for it.
    """
    lines = []
    for text, key in _render(composition):
        origin = f"# {composition.origin(key)}" if key is not None else ""
        lines.append(f"{text:<{_ORIGIN_COLUMN}} {origin}".rstrip())
    return "\n".join(lines) + "\n"


def golden(composition: Composition) -> str:
    """The resolved tree as `show` prints it, without origins, to be checked in and compared."""
    return "\n".join(text for text, _ in _render(composition)) + "\n"


def _render(composition: Composition) -> Iterator[tuple[str, Key | None]]:
    _refuse_secrets(composition)
    yield from _mapping(composition.raw, composition.tree, (), 0)


def _refuse_secrets(composition: Composition) -> None:
    """Raise `RecipeError` where printing the resolved form could print a secret."""
    if problems := unprintable(composition):
        raise RecipeError(problems)


def _mapping(raw: Any, tree: Any, at: Key, depth: int) -> Iterator[tuple[str, Key | None]]:
    in_list = isinstance(tree, list)
    for name, value in children(tree):
        key, written = (*at, name), child(raw, name)
        lead = "  " * depth + ("-" if in_list else f"{_scalar(name)}:")
        if isinstance(value, dict | list) and value and isinstance(written, str):
            yield f"{lead} {written}", key
        elif isinstance(value, dict | list) and value:
            yield lead, None
            yield from _mapping(written, value, key, depth + 1)
        else:
            yield f"{lead} {_scalar(value)}", key


def _scalar(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True).strip()
    return re.sub(r"\n?\.\.\.$", "", text).strip()


def compared(words: Sequence[str], catalogue: Catalogue) -> tuple[str, Composition, Composition]:
    """What `diff` compares by the words of its command line: the older's title, the older, the newer.

    `against=OTHER` names a recipe or the folder of a run. Without it, a recipe is compared with its parent, or with the
    base if it has none, and a curriculum with the stages of the recipes that it lists; a stored recipe has no parent.
    Recipes are compared at the scale of the newer. Raises `RecipeError`.
    """
    others = [word.removeprefix(_AGAINST) for word in words if word.startswith(_AGAINST)]
    new = from_command_line([word for word in words if not word.startswith(_AGAINST)], catalogue)
    if new.faults:
        raise RecipeError(new.faults)
    scale = [f"{SCALE}={new.choices[SCALE]}"] if SCALE in new.choices else []
    at = f" at {scale[0]}" if new.choices.get(SCALE, FULL) != FULL else ""
    if len(others) > 1:
        message = (
            f"one recipe or folder to compare with, not {len(others)}: `python -m framework compare` takes several"
        )
        raise RecipeError([Problem(COMMAND_LINE, f"{_AGAINST}{others[1]}", message)])
    if others:
        old = _named(others[0], catalogue, scale)
        return others[0] + (at if old.stored_in is None else ""), old, new
    if new.stored_in is not None:
        message = "a stored recipe has no parent: give against=RECIPE or against=FOLDER"
        raise RecipeError([Problem(COMMAND_LINE, f"run={new.stored_in}", message)])
    parent, recipes = parent_of(new), new.listed
    if parent:
        return parent + at, compose([f"recipe={parent}", *scale], catalogue), new
    words = ["~recipe", *scale, *([_listing(recipes)] if recipes else [])]
    title = f"the base with {', '.join(recipes)}" if recipes else "the base (no recipe)"
    return title + at, compose(words, catalogue), new


def _listing(recipes: Sequence[str]) -> str:
    """The override by which a curriculum lists `recipes`, each with the choices behind its name."""
    return f"{dotted(RECIPES)}=[{','.join(repr(each) for each in recipes)}]"


def _named(name: str, catalogue: Catalogue, scale: Sequence[str]) -> Composition:
    if name in catalogue.recipes():
        return compose([f"recipe={name}", *scale], catalogue)
    if has_recipe(Path(name)):
        return stored(Path(name), catalogue)
    message = "neither a recipe nor the folder of a run that has started"
    raise RecipeError([Problem(COMMAND_LINE, f"{_AGAINST}{name}", message, nearest(name, catalogue.recipes()))])


def parent_of(composition: Composition) -> str | None:
    """The recipe that this one derives from; None where it stands on the base alone."""
    recipes = [layer.config_path.removeprefix("recipe/") for layer in composition.layers if not layer.declares]
    own = recipes.index(composition.recipe) if composition.recipe in recipes else 0
    return recipes[own - 1] if own else None


def diff(old: Composition, new: Composition) -> str:
    """What `new` changes against `old`, one line a value: `key: old -> new   (where new sets it)`. Empty where they
    resolve to the same. The name and the folder of a run are left out: every run has its own.

    A component that `new` lacks is one line. A mapping that is interpolated as a whole is one value, the reference, and
    compared where it is written. A stage that `new` calls by another name is compared with that of the old name.
    """
    renamed = _renamed_stage(old, new)
    tree = _with_name(old.tree, renamed)
    for composition in (old, new):
        _refuse_secrets(composition)
    before = _written(_with_name(old.raw, renamed), tree, new.raw)
    after = _written(new.raw, new.tree, _with_name(old.raw, renamed))
    lines, gone = [], Key()
    if renamed is not None:
        name: Key = (*STAGES, renamed[1], *NAME[1:])
        setter = next((layer.origin(name) for layer in reversed(new.layers) if name in layer.lines), COMMAND_LINE)
        lines.append(f"{dotted(NAME)}: {renamed[0]} -> {renamed[1]}   ({setter})")
    for key in sorted(before.keys() | after.keys()):
        if key in IDENTITY or (gone and key[: len(gone)] == gone):
            continue
        if key not in after and any(each[: len(key)] == key for each in after):
            continue  # it was empty: the lines of its entries say all
        gone = () if before.get(key) == after.get(key) else _gone(key, tree, before, after)
        if gone:
            count = sum(each[: len(gone)] == gone for each in before)
            origin = new.origin(gone) if gone in after else "not set"
            lines.append(f"{dotted(gone)}: {count} values -> {after.get(gone, _ABSENT)}   ({origin})")
        elif before.get(key, _ABSENT) != after.get(key, _ABSENT):
            origin = new.origin(key) if key in after else "not set"
            lines.append(f"{dotted(key)}: {before.get(key, _ABSENT)} -> {after.get(key, _ABSENT)}   ({origin})")
    return "".join(f"{line}\n" for line in lines)


def _renamed_stage(old: Composition, new: Composition) -> tuple[str, str] | None:
    """The old and the new name of a recipe's own stage where they differ; None where there is no such pair."""
    names = old.own_stage, new.own_stage
    if names[0] is None or names[1] is None or names[0] == names[1]:
        return None
    taken = child(value_at(new.tree, STAGES), names[0]), child(value_at(old.tree, STAGES), names[1])
    return (names[0], names[1]) if taken == (None, None) else None


def _with_name(values: Any, renamed: tuple[str, str] | None) -> Any:
    """The tree `values` with its stage under the name that it has now."""
    if renamed is None:
        return values
    curriculum, stages = values[STAGES[0]], value_at(values, STAGES)
    stages = {renamed[1] if name == renamed[0] else name: stage for name, stage in stages.items()}
    return {**values, STAGES[0]: {**curriculum, STAGES[1]: stages}}


def _gone(key: Key, tree: Any, before: Mapping[Key, str], after: Mapping[Key, str]) -> Key:
    """The outermost component of `tree` around `key` of which nothing is left in `after`, but perhaps a null in its
    place; empty where there is none.
    """
    for depth, name in enumerate(key, 1):
        tree = child(tree, name)
        inside = key[:depth]
        left = (each for each in after if each[:depth] == inside and len(each) > depth)
        if isinstance(tree, dict) and "_target_" in tree and inside not in before and not any(left):
            return inside
    return ()


def written_values(composition: Composition) -> dict[Key, str]:
    """Every resolved value as text, and of a mapping that is interpolated as a whole the reference."""
    _refuse_secrets(composition)
    return _written(composition.raw, composition.tree)


def _written(raw: Any, tree: Any, against: Any = None) -> dict[Key, str]:
    """The values of a `tree` as `written_values` has them, by what is written in `raw`. A mapping that is interpolated
    as a whole is taken apart where `against`, the tree as another recipe writes it, has a mapping of its own.
    """
    found: dict[Key, str] = {}

    def walk(raw: Any, tree: Any, other: Any, at: Key) -> None:
        if isinstance(raw, str) and isinstance(tree, dict | list) and not isinstance(other, dict | list):
            found[at] = raw
        elif not children(tree):
            found[at] = _scalar(tree)
        else:
            for name, value in children(tree):
                walk(child(raw, name), value, child(other, name), (*at, name))

    walk(raw, tree, against, ())
    return found
