"""Resolves the interpolations of a composed tree one by one, so that all failures are known and not only the first."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue, OmegaConfBaseException

from framework.recipe.layers import MISSING, children, leaves, value_at
from framework.recipe.overrides import place, split_reference
from framework.recipe.problem import Key, Origin, Problem, RecipeError, dotted

MOST_EXPANDED, MOST_COPIES = 2_000, 4
"""What interpolations may make of a tree: so many values, and so many more for each that is written. Eleven lines of
two references each make 2,048 of one; no recipe of the repository becomes thrice as large."""
CHARACTERS = 1_000
"""So much of a text counts as a value."""
_REFERENCE = re.compile(r"(?<!\\)\$\{\s*(\.*[\w\[\]-][\w.\[\]-]*?)\s*(?:\}|\.?\$\{)")


def resolve(config: DictConfig) -> tuple[Any, dict[Key, str]]:
    """The resolved tree as plain containers, and the reason for each key whose interpolation fails. Missing and failed
    values are `???`.
    """
    failures: dict[Key, str] = {}
    return _resolve(config, (), failures), failures


def _resolve(node: DictConfig | ListConfig, at: Key, failures: dict[Key, str], within: tuple[int, ...] = ()) -> Any:
    """The values of `node`. `within` are the identities of the sections that contain it, as it is read."""
    names = list(node) if isinstance(node, DictConfig) else range(len(node))
    within = (*within, id(node))
    resolved = {name: _value(node, name, (*at, str(name)), failures, within) for name in names}
    return resolved if isinstance(node, DictConfig) else list(resolved.values())


def _value(node: Any, name: Any, key: Key, failures: dict[Key, str], within: tuple[int, ...]) -> Any:
    try:
        value = node[name]
    except (MissingMandatoryValue, InterpolationToMissingValueError):
        return MISSING
    except RecursionError:
        failures[key] = "the interpolation leads back to itself"
        return MISSING
    except OmegaConfBaseException as error:
        failures[key] = str(error).strip().splitlines()[0]
        return MISSING
    if not OmegaConf.is_config(value):
        return value
    if id(value) in within:
        failures[key] = "the interpolation contains itself"
        return MISSING
    return _resolve(value, key, failures, within)


def refuse_explosion(raw: Any, origin: Callable[[Key], Origin]) -> None:
    """Raise `RecipeError` where interpolations make the unresolved tree `raw` larger than `MOST_EXPANDED` and
    `MOST_COPIES` of each of its values. Its problem is the largest value; `origin` says what set it.

    A value counts 1, a long text more, and what it reads each time that it is read, as `resolve` meets it. References
    in circles are left to `resolve`, which names them.
    """
    written = list(leaves(raw))
    sizes: dict[Key, int] = {}
    if _size(raw, (), sizes) > MOST_EXPANDED + MOST_COPIES * sum(_length(value) for _, value in written):
        key = max((key for key, _ in written), key=lambda key: sizes[key])
        message = "its interpolations make thousands of values of it; write the value, or interpolate it fewer times"
        raise RecipeError([Problem(origin(key), dotted(key), message)])


def _size(raw: Any, root: Key, sizes: dict[Key, int]) -> int:
    """The size of the value at `root`; those of all that it reads are entered into `sizes`."""
    waiting = [(root, False)]
    while waiting:
        key, is_read = waiting.pop()
        if not is_read and key in sizes:
            continue
        value = value_at(raw, key)
        within = [(*key, name) for name, _ in children(value)] + [place(raw, each) for each in references(value, key)]
        if is_read:
            sizes[key] = _length(value) + sum(sizes[each] for each in within)
        else:
            sizes[key] = 0
            waiting += [(key, True), *((each, False) for each in within if each not in sizes)]
    return sizes[root]


def _length(value: Any) -> int:
    """What a value counts by itself."""
    return 1 + len(value) // CHARACTERS if isinstance(value, str) else 1


def references(raw: Any, key: Key) -> Iterator[Key]:
    """The keys that interpolations in the text `raw` at `key` read. For `${a.${b}}`: `b` and all of `a`."""
    if not isinstance(raw, str):
        return
    for match in _REFERENCE.finditer(raw):
        text = match[1]
        levels = len(text) - len(text.lstrip("."))
        base = key[:-levels] if levels else ()
        yield (*base, *split_reference(text))


def read_keys(tree: Any, roots: tuple[Key, ...]) -> set[Key]:
    """Every key of the unresolved `tree` that is read when `roots` are: all keys below them and, transitively, all that
    they interpolate.
    """
    reached: set[Key] = set()
    followed: set[Key] = set()
    waiting = list(roots)
    while waiting:
        key = place(tree, waiting.pop())
        if key in followed:
            continue
        followed.add(key)
        for inside, raw in leaves(value_at(tree, key), key):
            reached.update(inside[:depth] for depth in range(1, len(inside) + 1))
            waiting.extend(references(raw, inside))
    return reached
