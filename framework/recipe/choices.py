"""Checks the choices of presets that a command line makes, and those that recipes make of a stage and its parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from framework.recipe.annotation import described, is_component
from framework.recipe.defaults import NO_SCALE, RECIPE, SCALE, SELF, Entry, no_preset
from framework.recipe.graft import STAGE, STAGES
from framework.recipe.layers import MISSING, Layer, children, settings, value_at
from framework.recipe.overrides import COMMAND_LINE, split_reference
from framework.recipe.problem import Key, Origin, Problem, dotted, nearest
from framework.recipe.sources import Repository

STREAMS = "stage/data"
"""The group of the preset that every stream starts from. Recipes name their streams; they choose none."""
SURE = 0.75
"""How much of a preset's name must be there for its values to be meant: other keys of a section are no presets."""
Groups = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Choice:
    """One choice of a preset."""

    group: str
    """The group."""
    values: tuple[str, ...]
    """The presets."""
    origin: Origin
    """Who makes it."""
    config_path: str | None = None
    """The file that makes it, as Hydra calls it; None for the command line."""
    position: int = 0
    """The position in that file's defaults list."""


def checked_choices(overrides: Iterable[Override], groups: Groups, problems: list[Problem]) -> Iterator[Override]:
    """The overrides, choices of presets mended as they were probably meant. A problem is added for each fault."""
    for override in overrides:
        group, value = override.key_or_group, override.value()
        names = value if isinstance(value, list) else [value]
        written = override.get_key_element()
        if "/" in group and group not in groups:
            near = nearest(group, groups)
            problems.append(Problem(COMMAND_LINE, written, f"there is no group {group}/ in conf/", near))
        elif group in groups and override.is_delete():
            if "none" in groups[group]:
                message = f"a choice cannot be deleted; write {group}={'[]' if group == 'evals' else 'none'}"
                problems.append(Problem(COMMAND_LINE, f"~{group}", message))
            else:
                yield override
        elif group in groups and value is None:
            remedy = f"write {group}=none" if "none" in groups[group] else f"choose one of {', '.join(groups[group])}"
            problems.append(Problem(COMMAND_LINE, group, f"null chooses nothing; {remedy}"))
        elif group in groups and all(isinstance(name, str) for name in names):
            yield from _known(override, [str(name) for name in names], groups, problems)
        elif group in groups and not isinstance(value, dict):
            known = ", ".join(groups[group])
            problems.append(Problem(COMMAND_LINE, group, f"{value} is no preset's name; there are: {known}"))
        elif (slashed := part_group(split_reference(group))) in groups and isinstance(value, str) and "$" not in value:
            message = f"a dot sets a value, and a slash chooses a preset: write {slashed}={value}"
            if group.startswith("curriculum."):
                message += f", or of a stage that is listed, curriculum.recipes=['RECIPE {slashed}={value}']"
            problems.append(Problem(COMMAND_LINE, group, message))
        else:
            yield override


def _known(override: Override, names: list[str], groups: Groups, problems: list[Problem]) -> Iterator[Override]:
    group, known = override.key_or_group, groups[override.key_or_group]
    unknown = [name for name in names if name not in known]
    for name in unknown:
        problems.append(Problem(COMMAND_LINE, group, no_preset(name, group, groups), nearest(name, known)))
    if len(set(names)) < len(names):
        problems.append(Problem(COMMAND_LINE, group, f"names a preset twice: {', '.join(names)}"))
    meant = list(dict.fromkeys(name if name in known else nearest(name, known) for name in names))
    kept = [name for name in meant if name is not None]
    if kept == names:
        yield override
    elif kept or isinstance(override.value(), list):
        value = f"[{','.join(kept)}]" if isinstance(override.value(), list) else kept[0]
        sign = "+" if override.is_add() else ""
        yield OverridesParser.create().parse_override(f"{sign}{override.get_key_element().lstrip('+')}={value}")


def written_choices(repository: Repository, recipe: str, overrides: Iterable[Override]) -> list[Choice]:
    """All choices that the recipe, those that it derives from and the command line make, the strongest last."""
    choices = [*_of_file(repository, f"{RECIPE}/{recipe}", [])]
    for override in overrides:
        if override.key_or_group in repository.groups and not override.is_delete():
            value = override.value()
            names = tuple(str(name) for name in (value if isinstance(value, list) else [value]))
            choices.append(Choice(override.key_or_group, names, COMMAND_LINE))
    return choices


def _of_file(repository: Repository, config_path: str, within: list[str]) -> Iterator[Choice]:
    if repository.load_config(config_path) is None:
        return
    entries = list(repository.defaults[config_path].entries)
    name = repository.name_of(config_path)
    for position, entry in enumerate(entries):
        included = f"{RECIPE}/{entry.name}"
        if entry.values is not None or entry.name == SELF:
            continue
        if included in (*within, config_path):
            _close_circle(repository, config_path, position, entry, name)
        else:
            yield from _of_file(repository, included, [*within, config_path])
    for position, entry in enumerate(repository.defaults[config_path].entries):
        if entry.values is not None:
            origin = Origin(name, entry.line)
            yield Choice(entry.group(RECIPE), entry.values, origin, config_path, position)


def _close_circle(repository: Repository, config_path: str, position: int, entry: Entry, name: str) -> None:
    message = f"{entry.name} derives from this recipe; leave one of the two out"
    faults = repository.defaults[config_path].problems
    faults.append(Problem(Origin(name, entry.line), f"defaults.{entry.name}", message))
    repository.drop(config_path, position)


def no_such_part(group: str, choices: Iterable[Choice]) -> str:
    """Why the part `group` of a stage cannot be chosen in a recipe that makes `choices`."""
    kind = [", ".join(choice.values) for choice in choices if choice.group == STAGE]
    if kind and kind[-1] != "none":
        return f"a stage of the kind {kind[-1]} has no such part"
    return (
        "the recipe has no stage of its own: choose one first (override /stage: sft, or rl); a curriculum chooses a "
        f"part where it lists the recipe: recipes: [NAME {group}=PRESET]"
    )


def refuse_stale_parts(repository: Repository, choices: Sequence[Choice], problems: list[Problem]) -> None:
    """Report and leave out the parts of a stage that were chosen for another kind of stage than is chosen last."""
    kinds = [(place, choice) for place, choice in enumerate(choices) if choice.group == STAGE]
    if len(kinds) < 2 or kinds[-1][1].values == kinds[-2][1].values:
        return
    last, kind = kinds[-1]
    of = max(place for place, choice in kinds if choice.values != kind.values)
    again = {choice.group for choice in choices if choice.origin == kind.origin or choices.index(choice) > last}
    stale = [
        choice
        for choice in choices[:last]
        if choice.group.startswith(f"{STAGE}/") and choice.group not in again and choice.origin.file != kind.origin.file
    ]
    if not stale:
        return
    parts = ", ".join(f"{choice.group}: {', '.join(choice.values)} ({choice.origin})" for choice in stale)
    message = (
        f"{kind.values[0]} replaces {choices[of].values[0]} of {choices[of].origin}, whose choices mean nothing then"
    )
    remedy = "derive from a recipe of this kind of stage, or choose these parts again here"
    key = STAGE if kind.config_path is None else f"defaults./{STAGE}"
    problems.append(Problem(kind.origin, key, f"{message}: {parts}; {remedy}"))
    for choice in sorted(stale, key=lambda each: -each.position):
        if choice.config_path is not None:
            repository.drop(choice.config_path, choice.position)


def unchosen_preset(
    override: Override, values: Any, repository: Repository, choices: Mapping[str, str]
) -> Problem | None:
    """The fault of an override that sets a value of a preset which the recipe does not choose, as of an eval, and how
    to choose it; None for any other override.
    """
    key = split_reference(override.key_or_group)
    for depth in range(1, 0 if override.is_delete() or override.is_add() else len(key)):
        group, node = "/".join(key[:depth]), value_at(values, key[:depth])
        here = [name for name, _ in children(node)]
        presets = repository.groups.get(group, ())
        if not presets or is_component(node) or isinstance(node, str) or key[depth] in here:
            continue
        name = key[depth] if key[depth] in presets else nearest(key[depth], [*presets, *here], SURE)
        if name is None or name in here:
            continue
        chosen = choices[group].split(", ") if choices.get(group) else [each for each in here if each in presets]
        chosen = [each for each in chosen if each != "none"]
        message = f"the recipe does not choose {name} of {group}/; add {group}=[{','.join([*chosen, name])}]"
        meant = None if name == key[depth] else dotted((*key[:depth], name, *key[depth + 1 :]))
        return Problem(COMMAND_LINE, dotted(key), message, meant)
    return None


def part_group(key: Key) -> str:
    """The group that chooses the component at `key`, of a stage in a curriculum as well."""
    return "/".join((STAGE, *key[3:]) if key[:2] == STAGES and key[3:] else key)


def without_words(layer: Layer, groups: Groups, problems: list[Problem]) -> Layer:
    """The layer without the values by which a recipe means to choose presets, `stage: {objective: dapo}` or `evals:
    [held_out]`; each becomes a problem.
    """
    meant = []
    for key, value in settings(layer.values):
        if key and key[0].startswith("override "):
            message = f"is an entry of the defaults list; write it there: '- {key[0]}: {value}'"
            problems.append(Problem(layer.origin(key), key[0], message))
            meant.append(key)
        group = part_group(key)
        words = value if isinstance(value, list) else [value]
        are_words = bool(words) and all(isinstance(each, str) and "$" not in each for each in words)
        if group in groups and group != STREAMS and are_words and value != MISSING:
            problems.append(Problem(layer.origin(key), dotted(key), _word_message(key, group, value, groups[group])))
            meant.append(key)
    return replace(layer, values=_without(layer.values, meant)) if meant else layer


def _word_message(key: Key, group: str, value: str | list[str], presets: Sequence[str]) -> str:
    written = value if isinstance(value, str) else f"[{', '.join(value)}]"
    if group == SCALE:
        return f"{NO_SCALE}{SCALE}={written}"
    if group == RECIPE:
        return f"a recipe's parent is listed first in its defaults: '- {written}'"
    if nearest(value if isinstance(value, str) else value[0], presets) is None:
        return f"must be a mapping of its keys, each written 'key: value', not {described(value)}"
    what = "sets the component to a word" if isinstance(value, str) else "a list chooses nothing here"
    if key[:2] == STAGES:
        return f"{what}; choose a preset where the recipe is listed: recipes: [RECIPE {group}={written}]"
    return f"{what}; choose a preset in the defaults: '- override /{group}: {written}'"


def _without(values: Any, keys: Sequence[Key]) -> Any:
    """`values` without what lies at `keys`, and without mappings that hold nothing else."""
    if not isinstance(values, dict):
        return values
    below = {name: [key[1:] for key in keys if key[0] == str(name)] for name in values}
    kept = {name: _without(value, below[name]) for name, value in values.items() if () not in below[name]}
    return {name: value for name, value in kept.items() if value != {} or not below[name]}
