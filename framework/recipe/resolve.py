"""Resolves the interpolations of a composed tree one by one, so that all failures are known and not only the first."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue, OmegaConfBaseException

from framework.recipe.layers import MISSING, leaves, value_at
from framework.recipe.overrides import place, split_reference
from framework.recipe.problem import Key

_REFERENCE = re.compile(r"(?<!\\)\$\{\s*(\.*[\w\[\]-][\w.\[\]-]*?)\s*(?:\}|\.?\$\{)")


def resolve(config: DictConfig) -> tuple[Any, dict[Key, str]]:
    """The resolved tree as plain containers, and the reason for each key whose interpolation fails. Missing and failed
    values are `???`.
    """
    failures: dict[Key, str] = {}
    return _resolve(config, (), failures), failures


def _resolve(node: DictConfig | ListConfig, at: Key, failures: dict[Key, str]) -> Any:
    names = list(node) if isinstance(node, DictConfig) else range(len(node))
    resolved = {name: _value(node, name, (*at, str(name)), failures) for name in names}
    return resolved if isinstance(node, DictConfig) else list(resolved.values())


def _value(node: Any, name: Any, key: Key, failures: dict[Key, str]) -> Any:
    if len(key) > 60:
        failures[key] = "the interpolation contains itself"
        return MISSING
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
    return _resolve(value, key, failures) if OmegaConf.is_config(value) else value


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
