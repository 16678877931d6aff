"""A composition as people read it: the resolved tree with the origin of every value, and differences between two."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from framework.recipe.composition import Composition
from framework.recipe.layers import child, children, leaves
from framework.recipe.problem import Key, dotted

_MARGIN = 72


def show(composition: Composition) -> str:
    """The resolved tree as YAML; behind each value the file and line, or the override, that set it.

    A mapping that is interpolated as a whole is shown once, where it is written; elsewhere its reference stands for it.
    """
    lines = []
    for text, key in _render(composition):
        origin = f"# {composition.origin(key)}" if key is not None else ""
        lines.append(f"{text:<{_MARGIN}} {origin}".rstrip())
    return "\n".join(lines) + "\n"


def golden(composition: Composition) -> str:
    """The resolved tree as `show` prints it, without origins: what a pull request's difference is read from."""
    return "\n".join(text for text, _ in _render(composition)) + "\n"


def _render(composition: Composition) -> Iterator[tuple[str, Key | None]]:
    yield from _mapping(composition.raw, composition.tree, (), 0)


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


def parent_of(composition: Composition) -> str | None:
    """The recipe that this one derives from; None when it stands on the base alone."""
    recipes = [layer.config_path.removeprefix("recipe/") for layer in composition.layers if not layer.declares]
    own = recipes.index(composition.recipe) if composition.recipe in recipes else 0
    return recipes[own - 1] if own else None


def diff(old: Composition, new: Composition) -> str:
    """What `new` changes against `old`, one line a value: `key: old -> new   (where new sets it)`. Empty when
    nothing."""
    before, after = _values(old), _values(new)
    lines = []
    for key in sorted(before.keys() | after.keys()):
        if before.get(key, "(absent)") != after.get(key, "(absent)"):
            origin = new.origin(key) if key in after else "not set"
            lines.append(f"{dotted(key)}: {before.get(key, '(absent)')} -> {after.get(key, '(absent)')}   ({origin})")
    return "".join(f"{line}\n" for line in lines)


def _values(composition: Composition) -> dict[Key, str]:
    """Every resolved value by the place where it is written (interpolated mappings once)."""
    found: dict[Key, str] = {}
    for key, value in leaves(composition.tree):
        if composition.place(key) == key:
            found[key] = _scalar(value)
    return found
