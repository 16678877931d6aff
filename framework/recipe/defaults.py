"""Reads the defaults lists of presets and recipes, and finds what Hydra would ignore in them or report without a line.

Each entry is an own name in the file's group (`_self_`, the name of another recipe), or a choice from a group. An entry
with a fault is reported, and mended as it was probably meant, so that the rest of the recipe is checked too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from framework.recipe.problem import Origin, Problem, RecipeError, nearest

RECIPE = "recipe"
"""The group that recipes are."""
SELF = "_self_"
SCALE = "scale"
"""The group of sizes, chosen on the command line: its values have the last word over every recipe's."""
NO_SCALE = "a recipe cannot choose a scale, which has the last word; leave it out and write on the command line: "
"""What is wrong with a scale in a recipe; the command line's word follows."""
_ENTRY = re.compile(r"(?P<optional>optional +)?(?P<override>override +)?(?P<group>[^@ ]+)(?P<package>@\S+)?")
_HEADER = re.compile(r"#\s*@package\b")


@dataclass(frozen=True)
class Entry:
    """One entry of a defaults list."""

    line: int
    """Its line."""
    name: str
    """The name of a preset of the file's own group, `_self_`, or the group that it chooses from, as written."""
    values: tuple[str, ...] | None = None
    """The presets chosen; None where `name` is not a group."""
    override: bool = False
    """Whether it replaces an earlier choice."""
    package: str = ""
    """`@` and the key below which the preset's values go, as written; empty for the group's own."""
    is_list: bool = False
    """Whether the presets were written as a list."""

    def group(self, base: str) -> str:
        """The group that it chooses from, in a file of the group `base`."""
        return self.name[1:] if self.name.startswith("/") else f"{base}/{self.name}".lstrip("/")

    @property
    def written(self) -> str:
        """The left side, as messages name it."""
        return ("override " if self.override else "") + self.name + self.package

    def item(self) -> object:
        """The entry as YAML has it."""
        if self.values is None:
            return self.name + self.package
        return {self.written: list(self.values) if self.is_list else (self.values[0] if self.values else None)}


@dataclass
class Defaults:
    """The defaults list of one file."""

    entries: list[Entry]
    """The entries, mended."""
    problems: list[Problem] = field(default_factory=list)
    """What was wrong with the list."""
    mended: bool = False
    """Whether `entries` are others than the file has."""


def read_defaults(
    root: yaml.Node | None, file: Path, name: str, config_path: str, groups: Mapping[str, Sequence[str]]
) -> Defaults:
    """The defaults list of `file`, which Hydra calls `config_path`. `groups` has the presets of each group, recipes
    among them; `name` is the file's in messages.
    """
    base, _, own = config_path.rpartition("/")
    if config_path.startswith(f"{RECIPE}/"):
        base, own = RECIPE, config_path.removeprefix(f"{RECIPE}/")
    found = Defaults([])
    entries = list(_entries(root))
    for entry in entries:
        origin = Origin(name, entry.line)
        if entry.values is None:
            mended = _own_name(entry, origin, base, own, groups, found)
        else:
            mended = _choice(entry, origin, base, groups, found)
        found.mended |= mended != entry
        if mended is not None:
            found.entries.append(mended)
    _order(found, name, config_path)
    _header(file, name, config_path, found)
    return found


def refuse_form(root: yaml.Node | None, name: str) -> None:
    """Raise `RecipeError` where the file `name` is no mapping, or its `defaults` are no list of names and single
    choices.
    """
    problems: list[Problem] = []
    if root is not None and not isinstance(root, yaml.MappingNode):
        message = "must be a mapping, each line 'key: value'"
        problems.append(Problem(Origin(name, root.start_mark.line + 1), "", message))
    for key, value in root.value if isinstance(root, yaml.MappingNode) else ():
        if key.value == "defaults" and not isinstance(value, yaml.SequenceNode):
            message = "must be a list, an entry to a line: '- sft_broad', or '- override /stage: sft'"
            problems.append(Problem(Origin(name, key.start_mark.line + 1), "defaults", message))
        for entry in value.value if key.value == "defaults" and isinstance(value, yaml.SequenceNode) else ():
            single = isinstance(entry, yaml.ScalarNode) or (
                isinstance(entry, yaml.MappingNode) and len(entry.value) == 1
            )
            if not single:
                message = "an entry is one name or one choice; begin each with '- ', as '- override /stage: sft'"
                problems.append(Problem(Origin(name, entry.start_mark.line + 1), "defaults", message))
    if problems:
        raise RecipeError(problems)


def _entries(root: yaml.Node | None) -> Iterator[Entry]:
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    lists = [value for key, value in pairs if key.value == "defaults" and isinstance(value, yaml.SequenceNode)]
    for node in (node for value in lists for node in value.value):
        line = node.start_mark.line + 1
        if isinstance(node, yaml.ScalarNode):
            path, _, package = node.value.partition("@")
            yield Entry(line, path, package=f"@{package}" if package else "")
        for key, value in node.value if isinstance(node, yaml.MappingNode) else []:
            match = _ENTRY.fullmatch(key.value)
            if match is None:
                continue
            is_list = isinstance(value, yaml.SequenceNode)
            chosen = [each.value for each in value.value] if is_list else [value.value]
            values = tuple(each for each in chosen if each not in ("null", "~", ""))
            yield Entry(line, match["group"], values, bool(match["override"]), match["package"] or "", is_list)


def _own_name(
    entry: Entry, origin: Origin, base: str, own: str, groups: Mapping[str, Sequence[str]], found: Defaults
) -> Entry | None:
    """An entry without a group: another file of the same group."""
    if entry.name == SELF or entry.name.startswith("/") or "${" in entry.name:
        return entry
    key = f"defaults.{entry.name}"
    if entry.name == own:
        found.problems.append(Problem(origin, key, "the file includes itself; leave it out"))
        return None
    group, _, preset = f"{base}/{entry.name}".lstrip("/").rpartition("/")
    if base == RECIPE and group not in groups:  # a path, recipes/NAME or recipes/NAME.yaml
        near = nearest(preset, [each for each in groups[RECIPE] if each != own])
        message = "a recipe is listed by its name, without folder or ending"
        found.problems.append(Problem(origin, key, message, near))
        return replace(entry, name=near) if near else None
    known = groups.get(group, ())
    if preset in known:
        return entry
    near = nearest(preset, [each for each in known if each != own])
    kind = "recipe" if group == RECIPE else f"preset in {group}/"
    found.problems.append(Problem(origin, key, f"no such {kind}; there are: {', '.join(known)}", near))
    return replace(entry, name=entry.name.removesuffix(preset) + near) if near else None


def _choice(
    entry: Entry, origin: Origin, base: str, groups: Mapping[str, Sequence[str]], found: Defaults
) -> Entry | None:
    """A choice from a group that exists, of presets that it has."""
    group, key = entry.group(base), f"defaults.{entry.name.lstrip('/')}"
    if "${" in group:
        return entry
    if base == RECIPE and SCALE in (group.partition("/")[0], entry.name.partition("/")[0]):
        chosen = next(iter(entry.values or ()), "tiny")
        found.problems.append(Problem(origin, f"defaults./{SCALE}", f"{NO_SCALE}{SCALE}={chosen}"))
        return None
    if base == RECIPE and entry.name == f"/{RECIPE}":
        parents = ", ".join(f"'- {value}'" for value in entry.values or ())
        message = f"a recipe does not replace itself by another; list its parent first: {parents}"
        found.problems.append(Problem(origin, f"defaults./{RECIPE}", message))
        return None
    rooted = f"/{entry.name}"
    if group not in groups and not entry.name.startswith("/") and entry.name in groups:
        message = f"a group is named from the root of conf/; write {replace(entry, name=rooted).written}"
        found.problems.append(Problem(origin, key, message))
        entry, group = replace(entry, name=rooted), entry.name
    if group not in groups:
        group = entry.name.lstrip("/") if base == RECIPE else group
        near = nearest(group, [each for each in groups if each != RECIPE])
        found.problems.append(Problem(origin, key, f"there is no group {group}/ in conf/", near))
        if near is None:
            return None
        entry, group = replace(entry, name=f"/{near}"), near
    values = []
    for value in entry.values or ():
        near = value
        if value not in groups[group] and "${" not in value and value != "???":
            near = nearest(value, groups[group]) or ""
            found.problems.append(Problem(origin, key, no_preset(value, group, groups), near or None))
        if near:
            values.append(near)
    if len(set(values)) < len(values):
        found.problems.append(Problem(origin, key, f"names a preset twice: {', '.join(values)}"))
        values = list(dict.fromkeys(values))
    if entry.values and not values and not entry.is_list:
        return None
    return replace(entry, values=tuple(values))


def no_preset(name: str, group: str, groups: Mapping[str, Sequence[str]]) -> str:
    """That `group` has no preset `name`, which it has, and which other group has that one."""
    others = [each for each, presets in groups.items() if name in presets and each != RECIPE]
    elsewhere = f"; {name} is one of {others[0]}/" if len(others) == 1 else ""
    return f"no preset '{name}' in {group}/; there are: {', '.join(groups[group])}{elsewhere}"


def _order(found: Defaults, name: str, config_path: str) -> None:
    """Overrides come last; values of the file's own come after what they are to override; nothing is chosen twice."""
    overrides = [entry for entry in found.entries if entry.override]
    rest = [entry for entry in found.entries if not entry.override]
    first = next((i for i, entry in enumerate(found.entries) if entry.override), len(found.entries))
    for entry in found.entries[first:]:
        if not entry.override and entry.name != SELF:
            message = "overrides come last in a defaults list; move this above them"
            found.problems.append(Problem(Origin(name, entry.line), f"defaults.{entry.name.lstrip('/')}", message))
            found.mended = True
    is_recipe = config_path.startswith(f"{RECIPE}/")
    selves = [i for i, entry in enumerate(rest) if entry.name == SELF and entry.values is None]
    if is_recipe and selves and selves[0] < len(rest) - 1:
        after = ", ".join(entry.name for entry in rest[selves[0] + 1 :])
        message = f"the recipe's own values would lose to those of {after}, silently; put _self_ after it"
        found.problems.append(Problem(Origin(name, rest[selves[0]].line), "defaults._self_", message))
        rest = [*rest[: selves[0]], *rest[selves[0] + 1 :], rest[selves[0]]]
        found.mended = True
    chosen: dict[str, Entry] = {}
    for entry in list(overrides):
        key = entry.name.lstrip("/") + entry.package
        if key in chosen:
            message = f"chosen twice, first in line {chosen[key].line}; leave one out"
            found.problems.append(Problem(Origin(name, entry.line), f"defaults.{key}", message))
            overrides.remove(entry)
            found.mended = True
        chosen.setdefault(key, entry)
    found.entries = [*rest, *overrides]


def _header(file: Path, name: str, config_path: str, found: Defaults) -> None:
    """A `# @package` line counts only above the first key; a recipe needs one."""
    leading, has_header = True, False
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        leading = leading and (line.startswith("#") or not line.strip())
        if not _HEADER.match(line):
            continue
        has_header |= leading
        if not leading:
            message = f"'{line.strip()}' counts only above the file's first key; move it there"
            found.problems.append(Problem(Origin(name, number), "", message))
            has_header = True
    if config_path.startswith(f"{RECIPE}/") and not has_header:
        message = "a recipe needs the line '# @package _global_' above its first key"
        found.problems.append(Problem(Origin(name, 1), "", f"{message}; without it, its values land below 'recipe'"))
