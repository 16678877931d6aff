"""The resolved recipe that a run stored in its folder, read back: checked and instantiated like any other."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from framework.recipe.apply import apply_override
from framework.recipe.catalogue import Catalogue
from framework.recipe.compose import compose_with_faults
from framework.recipe.composition import Composition
from framework.recipe.layers import Layer, children, key_lines, origin_of, record_origins, value_at
from framework.recipe.overrides import COMMAND_LINE, WHOLE_REFERENCE, parse_overrides, split_reference
from framework.recipe.problem import Key, Origin, Problem, RecipeError, dotted, nearest
from framework.recipe.renames import renames
from framework.recipe.resolve import refuse_explosion
from framework.recipe.safe_yaml import read_nodes
from framework.recipe.scale import keep_given_steps

RECIPE = "recipe="
RUN = "run="
"""How the command line names a recipe, or the folder of a run that stored one."""
RECIPE_FILE = "recipe.yaml"
"""The stored recipe in a run's folder. `run/layout.py` repeats it: the two packages never import each other."""

PROVENANCE_FILE = "provenance.json"
"""The file next to it that has what set each value; `run/layout.py` repeats it, too."""


def from_command_line(words: Sequence[str], catalogue: Catalogue | None = None) -> Composition:
    """The recipe that the command line names: `recipe=NAME` composed, or `run=FOLDER` as that run stored it.

    Faults that leave a tree to look at are in `.problems`. Raises `RecipeError` for those that do not.
    """
    folders = [word.removeprefix(RUN) for word in words if word.startswith(RUN)]
    if not folders:
        return compose_with_faults(words, catalogue)
    if any(word.startswith(RECIPE) for word in words):
        message = "cannot be combined with recipe=NAME: the run stored its recipe; leave one of the two out"
        raise RecipeError([Problem(COMMAND_LINE, f"{RUN}{folders[-1]}", message)])
    if len(folders) > 1:
        raise RecipeError([Problem(COMMAND_LINE, "run", f"takes one folder, not {len(folders)}")])
    return stored(Path(folders[0]), catalogue, words)


def stored(
    run: Path, catalogue: Catalogue | None = None, words: Sequence[str] = (), name: str = RECIPE_FILE
) -> Composition:
    """The recipe of the run in folder `run` under today's names, with the overrides of single values among `words`.

    `name` is the file's. If the folder has moved since, paths inside it follow. Raises `RecipeError` where no recipe is
    stored. An override that chooses a preset is among `.problems`: the stored recipe is resolved, so it has no groups
    left to choose from.
    """
    catalogue = catalogue or Catalogue()
    catalogue.make_plugins_importable()
    file = run / name
    if not file.is_file():
        raise RecipeError([_no_recipe(run)])
    nodes = read_nodes(file, str(file))  # refuses what a stranger may have written, before it is loaded
    written = yaml.load(file.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    if not isinstance(written, dict) or not isinstance(written.get("run", {}), dict):
        message = "holds no recipe: keys with values, and the section run; restore the file from a copy"
        raise RecipeError([Problem(Origin(str(file)), "", message)])
    values = renames().tree(written)
    today = dict(_paired(written, values))
    lines = {today[key]: line for key, line in key_lines(nodes) if key in today}
    before = values.get("run", {}).get("folder")
    if isinstance(before, str) and Path(before).resolve() != run.resolve():
        values = _moved(values, before, str(run))
    values = _linked(values, _references(run / PROVENANCE_FILE, today))
    layer = Layer("recipe", file, str(file), values, lines, declares=True)
    origins: dict[Key, Origin] = {}
    record_origins(origins, (), values, layer.origin)
    config = DictConfig(values)
    OmegaConf.set_struct(config, True)
    problems: list[Problem] = []
    overrides = [word for word in words if not word.startswith(RUN)]
    problems += _preset_choices(overrides, catalogue)
    for override in parse_overrides(overrides, problems):
        apply_override(config, origins, override, problems)
    refuse_explosion(OmegaConf.to_container(config, resolve=False), lambda key: origin_of(origins, key))
    keep_given_steps(config, origins)
    choices = {"recipe": str(values.get("run", {}).get("name"))}
    return Composition(catalogue, tuple(words), config, [layer], origins, choices, problems, stored_in=run)


def _references(file: Path, today: Mapping[Key, Key]) -> dict[Key, str]:
    """The references that mappings of the recipe were before it was stored, by today's keys; empty for a run that did
    not record them. Any other entry of `file` says what set a value.
    """
    try:
        recorded = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    entries = recorded.items() if isinstance(recorded, dict) else ()
    keys = {dotted(before): now for before, now in today.items()}
    return {keys[key]: text for key, text in entries if key in keys and WHOLE_REFERENCE.fullmatch(str(text))}


def _linked(values: Any, references: Mapping[Key, str]) -> Any:
    """`values` with references where the stored recipe repeats what stands elsewhere, so that an override of the one is
    one of the other: `references`, and what the task has of the root under the same name. Whatever has become another
    value stays.
    """
    task = values.get("task")
    same: dict[Key, str] = {
        ("task", str(name)): f"${{{name}}}" for name in (task if isinstance(task, dict) else ()) if name in values
    }

    def walk(node: Any, at: Key) -> Any:
        text = references.get(at) or same.get(at)
        if text and value_at(values, split_reference(text[2:-1])) == node:
            return text
        if isinstance(node, dict):
            return {name: walk(value, (*at, str(name))) for name, value in node.items()}
        return [walk(value, (*at, str(place))) for place, value in enumerate(node)] if isinstance(node, list) else node

    return walk(values, ())


def has_recipe(folder: Path) -> bool:
    """Whether `folder` is that of a run that stored its recipe."""
    return (folder / RECIPE_FILE).is_file()


def _no_recipe(run: Path) -> Problem:
    known = [str(file.parent) for file in run.parent.glob(f"*/{RECIPE_FILE}")]
    message = "no such file; run=FOLDER takes the folder of a run that has started"
    return Problem(Origin(str(run / RECIPE_FILE)), "", message, nearest(str(run), known))


def _preset_choices(overrides: Iterable[str], catalogue: Catalogue) -> Iterator[Problem]:
    groups = {**catalogue.groups(), "recipe": []}
    for word in overrides:
        key, _, value = word.partition("=")
        group = key.lstrip("+~").partition("@")[0]
        if group in groups and not value.startswith(("{", "[")):
            message = (
                "a stored recipe takes values, not presets: set single keys, or compose the recipe with recipe=NAME"
            )
            yield Problem(COMMAND_LINE, word, message)


def _paired(old: Any, new: Any, at: Key = (), now: Key = ()) -> Iterator[tuple[Key, Key]]:
    """The keys of `old` with what they are in `new`. A renaming keeps the order; where it adds or drops keys, those are
    paired that keep their names."""
    before, after = children(old), children(new)
    if len(before) != len(after):
        kept = dict(after)
        before = [(name, value) for name, value in before if name in kept]
        after = [(name, kept[name]) for name, _ in before]
    for (name, value), (renamed, same) in zip(before, after, strict=True):
        yield (*at, name), (*now, renamed)
        yield from _paired(value, same, (*at, name), (*now, renamed))


def _moved(values: Any, before: str, now: str) -> Any:
    """`values` with every path at or below folder `before` at or below `now`."""
    if isinstance(values, dict):
        return {name: _moved(value, before, now) for name, value in values.items()}
    if isinstance(values, list):
        return [_moved(value, before, now) for value in values]
    inside = isinstance(values, str) and (values == before or values.startswith(f"{before}/"))
    return f"{now}{values[len(before) :]}" if inside else values
