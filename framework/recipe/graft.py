"""Gives the stages of recipes their places in the curriculum.

A recipe writes its one stage at the root, as `stage`. The resolved recipe has it at `curriculum.stages.<stage.name>`,
where the stages of the recipes that a curriculum lists lie as well. `stage.data.<name>` is short for
`mixture.parts.<name>` of the stage. References to `${stage...}` follow.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from framework.recipe.layers import Layer, children, leaves, settings, value_at
from framework.recipe.overrides import COMMAND_LINE
from framework.recipe.problem import Key, Origin, Problem, dotted, nearest

STAGE = "stage"
"""The node of a recipe's own stage, and the group that chooses its kind."""
NAME: Key = (STAGE, "name")
"""The key of the stage's name, which becomes its place."""
STAGES: Key = ("curriculum", "stages")
"""Where the resolved recipe has all stages, by name and in order."""
RECIPES: Key = ("curriculum", "recipes")
"""The key by which a curriculum lists recipes."""
DATA, PARTS = "data", ("mixture", "parts")
"""The short form of the streams of a stage, and the component's arguments that it stands for."""
_REFERENCE = re.compile(r"(?<!\\)\$\{\s*(stage|curriculum\.stages\.\w+)(\.data)?(?=[.\[}]|\.?\$\{)")
_PARTS = re.compile(rf"\b(curriculum\.stages\.\w+)\.{re.escape('.'.join(PARTS))}\b")
_RELATIVE = re.compile(r"(?<!\\)\$\{\s*(\.+)")


def placed(key: Key, name: str | None) -> Key:
    """Where the resolved recipe has `key`, if the stage is called `name`."""
    if key[:1] == (STAGE,) and name is not None:
        key = (*STAGES, name, *key[1:])
    if key[:2] == STAGES and key[3:4] == (DATA,):
        key = (*key[:3], *PARTS, *key[4:])
    return key


def placed_text(text: str, name: str | None) -> str:
    """`text` with its references to a stage leading to where the stage is."""

    def follow(match: re.Match[str]) -> str:
        place = dotted((*STAGES, name)) if match[1] == STAGE and name is not None else match[1]
        return "${" + place + (f".{dotted(PARTS)}" if match[2] and place != STAGE else match[2] or "")

    return _REFERENCE.sub(follow, text)


def leads_to_streams(key: Key) -> bool:
    """Whether a resolved recipe has the curriculum at `key`, a stage, or the mixture of a stage's streams."""
    stage = key[: len(STAGES)] == STAGES and key[len(STAGES) + 1 :] in ((), PARTS[:1])
    return stage or key == STAGES[:1]


def spoken(text: str, name: str | None) -> str:
    """`text` with the places of stages as a recipe writes them: below `stage` where its own is called `name`."""
    text = _PARTS.sub(rf"\1.{DATA}", text)
    return text if name is None else re.sub(rf"(?<![\w.]){re.escape(dotted((*STAGES, name)))}\b", STAGE, text)


def placed_layer(layer: Layer, name: str | None) -> Layer:
    """The layer with its stage, called `name`, in its place, and without what only composing reads."""
    values: dict[str, Any] = {}
    for key, value in settings(layer.values):
        if key in ((), NAME, RECIPES) or (name is None and key == (STAGE,) and not value):
            continue
        node = values
        *parents, last = placed(key, name)
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = _placed_value(value, name)
    lines = {placed(key, name): line for key, line in layer.lines.items()}
    return replace(layer, values=values, lines=lines, package=placed(layer.package, name))


def _placed_value(value: Any, name: str | None) -> Any:
    if isinstance(value, dict):
        return {key: _placed_value(each, name) for key, each in value.items()}
    if isinstance(value, list):
        return [_placed_value(each, name) for each in value]
    return placed_text(value, name) if isinstance(value, str) else value


def last_value(layers: Iterable[Layer], key: Key) -> tuple[Any, Origin | None]:
    """The value at `key` that the last of `layers` to set it sets, and where. None where none does."""
    found: tuple[Any, Origin | None] = (None, None)
    for layer in layers:
        value = value_at(layer.values, key)
        if value is not None:
            found = value, layer.origin(key)
    return found


def part_keys(layers: Iterable[Layer], overrides: Iterable[Key]) -> list[Key]:
    """The keys of all streams that placed `layers`, or `overrides` of the command line, set anything of."""
    length = len(STAGES) + 1 + len(PARTS) + 1
    keys = [key for layer in layers for key, _ in settings(layer.values)]
    streams = [key[:length] for key in (*keys, *overrides) if key[:2] == STAGES and key[3 : length - 1] == PARTS]
    return list(dict.fromkeys(key for key in streams if len(key) == length and "." not in key[-1]))


def leaving(layer: Layer) -> Iterator[Problem]:
    """The relative references in a stage that lead out of it, or out of its data: these move to another depth."""
    for key, value in leaves(layer.values):
        if key[:1] != (STAGE,) or not isinstance(value, str):
            continue
        inside = len(key) - (2 if key[:2] == (STAGE, DATA) else 1)
        if any(len(match[1]) > inside for match in _RELATIVE.finditer(value)):
            message = f"{value} leads out of the stage; write the reference from the root, as ${{paths.cache}}"
            yield Problem(layer.origin(key), dotted(key), message)


def rootless(raw: Any, overridden: Iterable[Key], origin: Callable[[Key], Origin]) -> Iterator[Problem]:
    """The references to `stage`, and keys of it, in a recipe that has none of its own: a curriculum, or no training.

    `overridden` are the keys that the command line sets.
    """
    stages = value_at(raw, STAGES) or ()

    def remedy(key: Key = ()) -> str:
        write = ", ".join(dotted((*STAGES, str(name), *key[1:])) for name in stages)
        return f"of a curriculum's stages, write {write}" if write else "choose one: override /stage: sft, or rl"

    for key in overridden:
        if key[:1] == (STAGE,):
            yield Problem(COMMAND_LINE, dotted(key), f"the recipe has no stage of its own: {remedy(key)}")
    for key, value in leaves(raw):
        if key[:1] == (STAGE,):
            yield Problem(origin(key), dotted(key), f"the recipe has no stage of its own: {remedy(key)}")
        elif isinstance(value, str) and any(match[1] == STAGE for match in _REFERENCE.finditer(value)):
            yield Problem(origin(key), dotted(key), f"{value} reads a stage at the root, and there is none: {remedy()}")


def strangers(raw: Any, origin: Callable[[Key], Origin]) -> Iterator[Problem]:
    """The entries of `curriculum.stages` that change a stage which no listed recipe has."""
    stages = value_at(raw, STAGES)
    known = [str(name) for name, stage in (stages or {}).items() if "_target_" in (stage or {})]
    for name, stage in (stages or {}).items():
        if isinstance(stage, dict) and "_target_" not in stage:
            key = (*STAGES, str(name))
            message = f"no listed recipe has a stage of this name; there are: {', '.join(known) or 'none'}"
            yield Problem(origin(key), dotted(key), message, nearest(str(name), known))


def sourceless(raw: Any, origin: Callable[[Key], Origin]) -> Iterator[Problem]:
    """The streams of stages that nothing gives a source: most often their names are misspelt ones of others."""
    for stage, value in children(value_at(raw, STAGES)):
        streams = [(name, each) for name, each in children(value_at(value, PARTS)) if isinstance(each, dict)]
        known = [name for name, each in streams if "source" in each]
        for name, each in streams:
            if "source" not in each and "_target_" in each:
                key = (*STAGES, stage, *PARTS, name)
                where = next((origin((*key, inside)) for inside in each if inside != "_target_"), origin(key))
                there = f"; there are: {', '.join(known)}" if known else ""
                message = f"no stream of the stage has this name{there}; a new one needs its source and tasks"
                near = nearest(name, known)
                yield Problem(where, dotted(key), message, near and dotted((*key[:-1], near)))
