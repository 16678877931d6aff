"""The files of a composition: the values that each sets, and their lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from framework.recipe.problem import Key, Origin

BASE = Origin("conf/config.yaml")
"""The file that every recipe starts from."""
MISSING = "???"
"""The placeholder of a value that the recipe or the command line must set."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One file of a composition."""

    config_path: str
    """Hydra's name for it: `optimizer/adamw`, `recipe/demo`."""
    file: Path
    """The file."""
    name: str
    """The file's name in messages."""
    values: Any
    """The values from the tree's root on, as plain containers, interpolations unresolved."""
    lines: dict[Key, int]
    """The line of every key, by the key from the tree's root."""
    declares: bool
    """True for presets, whose keys exist whether or not anything reads them. A recipe's keys must be read."""
    package: Key = ()
    """The key below which the file's values lie. What is above it the file does not set."""

    def origin(self, key: Key) -> Origin:
        """Where this file sets `key`."""
        return Origin(self.name, self.lines.get(key))


def key_lines(node: yaml.Node | None, at: Key = ()) -> Iterator[tuple[Key, int]]:
    """Every key below `node` with its line."""
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            key = (*at, str(name.value))
            yield key, name.start_mark.line + 1
            yield from key_lines(value, key)
    elif isinstance(node, yaml.SequenceNode):
        for position, value in enumerate(node.value):
            key = (*at, str(position))
            yield key, value.start_mark.line + 1
            yield from key_lines(value, key)


def children(values: Any) -> list[tuple[str, Any]]:
    """Names (or positions) and values of a container; nothing for anything else."""
    if isinstance(values, dict):
        return [(str(name), value) for name, value in values.items()]
    if isinstance(values, list):
        return [(str(position), value) for position, value in enumerate(values)]
    return []


def child(values: Any, name: str) -> Any:
    """The value at `name` in a container; None where there is none."""
    if isinstance(values, dict) and name in values:
        return values[name]
    return dict(children(values)).get(name) if values else None


def value_at(values: Any, key: Key) -> Any:
    """The value at `key` below `values`; None where there is none."""
    for name in key:
        values = child(values, name)
    return values


def origin_of(origins: Mapping[Key, Origin], key: Key) -> Origin:
    """What set the value at `key`: itself, else what is above it, else the base of all recipes."""
    while key and key not in origins:
        key = key[:-1]
    return origins.get(key, BASE)


def leaves(values: Any, at: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Every leaf with its key. Empty containers are leaves."""
    below = children(values)
    if not below:
        yield at, values
    for name, value in below:
        yield from leaves(value, (*at, name))


def settings(values: Any, at: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Every value with its key, as a merge treats them: mappings join, a list is one value."""
    if isinstance(values, dict) and values:
        for name, value in values.items():
            yield from settings(value, (*at, str(name)))
    else:
        yield at, values


def merge(old: Any, new: Any) -> Any:
    """`new` merged over `old`: mappings join, any other value replaces; a later ??? keeps what was set before."""
    if isinstance(old, dict) and isinstance(new, dict):
        joined = {name: merge(value, new[name]) if name in new else value for name, value in old.items()}
        return joined | {name: value for name, value in new.items() if name not in old}
    return old if new == MISSING and old is not None else new


def record_origins(
    origins: dict[Key, Origin], key: Key, values: Any, origin: Callable[[Key], Origin], old: Any = None
) -> None:
    """Record in `origins` that `values` were merged at `key` over the value `old`: a mapping joins another one, any
    other value replaces.
    """
    if isinstance(values, dict):
        if key and (key not in origins or not isinstance(old, dict)):
            origins[key] = origin(key)
        for name, value in values.items():
            record_origins(origins, (*key, str(name)), value, origin, child(old, str(name)))
        return
    if values == MISSING and key in origins:
        return  # a later ??? keeps what an earlier file has set
    if children(old):  # else nothing lies inside, and looking through all origins takes long
        for inside in [other for other in origins if other[: len(key)] == key]:
            del origins[inside]
    origins[key] = origin(key)
    for name, value in children(values):
        record_origins(origins, (*key, name), value, origin)
