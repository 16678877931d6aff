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
from framework.recipe.exposure import unprintable
from framework.recipe.graft import RECIPES
from framework.recipe.layers import child, children, leaves
from framework.recipe.overrides import COMMAND_LINE
from framework.recipe.problem import Key, Problem, RecipeError, dotted, nearest
from framework.recipe.stored import from_command_line, has_recipe, stored

_ORIGIN_COLUMN = 72
_AGAINST = "against="
_ABSENT = "(absent)"


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
    Raises `RecipeError`.
    """
    others = [word.removeprefix(_AGAINST) for word in words if word.startswith(_AGAINST)]
    new = from_command_line([word for word in words if not word.startswith(_AGAINST)], catalogue)
    if new.problems:
        raise RecipeError(new.problems)
    if others:
        return others[-1], _named(others[-1], catalogue), new
    if new.stored_in is not None:
        message = "a stored recipe has no parent: give against=RECIPE or against=FOLDER"
        raise RecipeError([Problem(COMMAND_LINE, f"run={new.stored_in}", message)])
    parent, recipes = parent_of(new), new.listed
    if parent:
        return parent, compose([f"recipe={parent}"], catalogue), new
    words = ["~recipe", f"{dotted(RECIPES)}=[{','.join(recipes)}]"] if recipes else ["~recipe"]
    return f"the base with {', '.join(recipes)}" if recipes else "the base (no recipe)", compose(words, catalogue), new


def _named(name: str, catalogue: Catalogue) -> Composition:
    if name in catalogue.recipes():
        return compose([f"recipe={name}"], catalogue)
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
    resolve to the same.

    A component that `new` lacks is one line. Mappings that are interpolated as a whole are compared once, where they
    are written. A stored recipe no longer says which these are: against one, every value is compared wherever it
    appears.
    """
    everywhere = old.stored_in is not None or new.stored_in is not None
    before, after = _values(old, everywhere), _values(new, everywhere)
    lines, gone = [], Key()
    for key in sorted(before.keys() | after.keys()):
        if gone and key[: len(gone)] == gone:
            continue
        if key not in after and any(each[: len(key)] == key for each in after):
            continue  # it was empty: the lines of its entries say all
        gone = _gone(key, old.tree, after)
        if gone:
            count = sum(each[: len(gone)] == gone for each in before)
            lines.append(f"{dotted(gone)}: {count} values -> {_ABSENT}   (not set)")
        elif before.get(key, _ABSENT) != after.get(key, _ABSENT):
            origin = new.origin(key) if key in after else "not set"
            lines.append(f"{dotted(key)}: {before.get(key, _ABSENT)} -> {after.get(key, _ABSENT)}   ({origin})")
    return "".join(f"{line}\n" for line in lines)


def _gone(key: Key, tree: Any, after: Mapping[Key, str]) -> Key:
    """The outermost component of `tree` around `key` of which nothing is left in `after`; empty where there is none."""
    for depth, name in enumerate(key, 1):
        tree = child(tree, name)
        inside = key[:depth]
        if isinstance(tree, dict) and "_target_" in tree and not any(each[:depth] == inside for each in after):
            return inside
    return ()


def _values(composition: Composition, everywhere: bool) -> dict[Key, str]:
    """Every resolved value, at the place where it is written or `everywhere` that it appears."""
    _refuse_secrets(composition)
    values = leaves(composition.tree)
    return {key: _scalar(value) for key, value in values if everywhere or composition.place(key) == key}
