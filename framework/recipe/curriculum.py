"""Which stages a recipe trains: one of its own, or those of the recipes that its curriculum lists."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from framework.recipe.catalogue import Catalogue
from framework.recipe.choices import Choice
from framework.recipe.draft import Draft
from framework.recipe.graft import NAME, RECIPES, STAGE, STAGES, last_value, placed, placed_text
from framework.recipe.layers import Layer, settings, value_at
from framework.recipe.overrides import COMMAND_LINE, split_reference
from framework.recipe.problem import Key, Origin, Problem, dotted, nearest

OWN_ROOTS = frozenset({STAGE, "curriculum", "evals", "init_from", "run", "search_metric", "search_direction", "task"})
"""The root keys of a listed recipe that concern it alone. It shares the others with the recipe that lists it."""
EVALS = "evals"
INIT_FROM: Key = ("init_from",)
_PART = re.compile(rf"{STAGE}/[\w/]+=\S+")
_STAGE_NAME = re.compile(r"[A-Za-z_]\w*")


def own_stage(layers: Sequence[Layer], overrides: Iterable[Override], problems: list[Problem]) -> str | None:
    """The name of the recipe's own stage; None where it has none."""
    target, _ = last_value(layers, (STAGE, "_target_"))
    if target is None:
        return None
    name, origin = given(layers, overrides, NAME)
    if isinstance(name, str) and _STAGE_NAME.fullmatch(name):
        return name
    message = f"{name!r} cannot name a stage; give a word, as broad"
    problems.append(Problem(origin or COMMAND_LINE, dotted(NAME), message))
    return STAGE


def given(layers: Iterable[Layer], overrides: Iterable[Override], key: Key) -> tuple[Any, Origin | None]:
    """The value at `key` that the command line sets, else the last of `layers` to set it, and where."""
    for override in reversed(list(overrides)):
        if split_reference(override.key_or_group) == key:
            return override.value(), COMMAND_LINE
    return last_value(layers, key)


def listed_recipes(
    layers: Sequence[Layer],
    overrides: Iterable[Override],
    problems: list[Problem],
    own: str | None,
    within: Sequence[str],
    catalogue: Catalogue,
) -> list[str]:
    """The recipes that the curriculum lists, those with a fault left out or replaced by the nearest.

    An entry is a recipe's name, and behind it the parts to choose of its stage: `sft_broad stage/optimizer=muon`.
    """
    names, origin = given(layers, overrides, RECIPES)
    places = [origin] * len(names if isinstance(names, list) else ())
    for layer in layers:
        if value_at(layer.values, RECIPES) is names and names:
            places = [layer.origin((*RECIPES, str(position))) for position in range(len(names))]
    key = dotted(RECIPES)
    if not isinstance(names or [], list):
        problems.append(Problem(origin or COMMAND_LINE, key, "give a list of recipes, as [sft_broad, rl_dapo]"))
        return []
    if names and own is not None:
        message = f"the recipe has a stage of its own, {own}, and lists recipes; leave one of the two out"
        problems.append(Problem(origin or COMMAND_LINE, key, message))
        return []
    recipes, found = catalogue.recipes(), list[str]()
    for entry, place in zip(names or (), places, strict=True):
        origin = place or COMMAND_LINE
        name, *choices = str(entry).split()
        for word in [word for word in choices if not _PART.fullmatch(word)]:
            message = f"{word} chooses no part of a stage, as stage/optimizer=muon does"
            remedy = "write values at curriculum.stages.<stage>, and everything else in this recipe"
            problems.append(Problem(origin, key, f"{message}; {remedy}"))
            choices.remove(word)
        if name in within:
            problems.append(Problem(origin, key, f"{name} leads back to this curriculum; leave it out"))
            continue
        near = name if name in recipes else nearest(name, recipes)
        if near != name:
            problems.append(Problem(origin, key, f"no such recipe: {name}; there are: {', '.join(recipes)}", near))
        if near is not None and near in [each.split()[0] for each in found]:
            message = f"{near} is listed twice, and its stage has one name; list it once, or next to it a recipe that"
            problems.append(Problem(origin, key, f"{message} derives from it and sets another stage.name"))
            continue
        found.extend([" ".join([near, *choices])] if near else [])
    return found


def placed_overrides(overrides: Iterable[Override], name: str | None) -> list[Override]:
    """The overrides of values, with their keys and references leading to where the stage called `name` is."""
    found = []
    for override in overrides:
        key = split_reference(override.key_or_group)
        if key in (NAME, RECIPES):
            continue
        if "${" in (override.input_line or ""):
            override = OverridesParser.create().parse_override(placed_text(str(override.input_line), name))
        override.key_or_group = dotted(placed(key, name))
        found.append(override)
    return found


def listed_stages(listed: Sequence[Draft], problems: list[Problem], origin: Origin) -> Iterator[tuple[str, Draft]]:
    """The stages of the recipes listed at `origin`, in order, each with the recipe that has it."""
    owners: dict[str, str] = {}
    for draft in listed:
        own = [replace(each, origin=origin) if each.origin == COMMAND_LINE else each for each in draft.problems]
        problems += [problem for problem in own if problem not in problems]
        stages = value_at(draft.values, STAGES) or {}
        if not stages:
            problems.append(Problem(origin, dotted(RECIPES), f"{draft.recipe} has no stage to take"))
        for name in stages:
            if name in owners:
                message = (
                    f"{owners[name]} and {draft.recipe} both have a stage {name}; set stage.name in one of the two"
                )
                problems.append(Problem(origin, dotted(RECIPES), message))
            else:
                owners[name] = draft.recipe
                yield str(name), draft


def unused_roots(listed: Draft, outer: Draft, choices: Iterable[Choice]) -> Iterator[Problem]:
    """What a listed recipe sets outside its stage, and the recipe that lists it has otherwise."""
    effect = f"has no effect in {outer.recipe}, which takes only the stage of {listed.recipe}"
    for choice in {choice.group: choice for choice in choices}.values():
        chosen = outer.choices.get(choice.group)
        if choice.group.partition("/")[0] not in OWN_ROOTS and chosen not in (None, ", ".join(choice.values)):
            message = f"{', '.join(choice.values)} {effect} and chooses {chosen}; choose it there"
            yield Problem(choice.origin, f"defaults./{choice.group}", message, warning=True)
    for layer in listed.layers:
        values = {} if layer.declares else layer.values
        for key, _ in settings(values):
            here, there = value_at(listed.values, key), value_at(outer.values, key)
            if key and key[0] not in OWN_ROOTS and here != there:
                message = f"{here} {effect} and has {there}; set it there"
                yield Problem(layer.origin(key), dotted(key), message, warning=True)


def unused_evals(listed: Draft, outer: Draft, choices: Iterable[Choice], own: Iterable[Choice]) -> Iterator[Problem]:
    """The evals of a listed recipe that the recipe which lists it does without. One that chooses evals by its `own`
    choices does so on purpose; it is told of what the listed recipe changes of those alone.
    """
    effect = f"has no effect in {outer.recipe}, which takes only the stage of {listed.recipe}"
    if not any(choice.group == EVALS for choice in own):
        for choice in [choice for choice in choices if choice.group == EVALS and choice.values][-1:]:
            names = ", ".join(choice.values)
            message = f"{names} {effect} and evaluates nothing; write '- override /evals: [{names}]' there"
            yield Problem(choice.origin, f"defaults./{EVALS}", message, warning=True)
        return
    for layer in listed.layers:
        for key, _ in settings({} if layer.declares else layer.values):
            here, there = value_at(listed.values, key), value_at(outer.values, key)
            if key[:1] == (EVALS,) and key[1:] and value_at(outer.values, key[:2]) is not None and here != there:
                yield Problem(
                    layer.origin(key), dotted(key), f"{here} {effect} and has {there}; set it there", warning=True
                )


def unused_weights(first: Draft, outer: Draft) -> Iterator[Problem]:
    """The weights that the first listed recipe starts from, where the curriculum starts from others: any later stage
    starts from those of the stage before.
    """
    here, there = value_at(first.values, INIT_FROM), value_at(outer.values, INIT_FROM)
    if here is not None and here != there:
        start = "the backbone's own weights" if there is None else there
        message = f"{here} has no effect in {outer.recipe}, which starts from {start}; set init_from there"
        yield Problem(first.origin(INIT_FROM), dotted(INIT_FROM), message, warning=True)
