"""Composes a recipe and its overrides with Hydra, and records the line that set each value.

Hydra decides which files take part and in which order. They are merged here one by one, so that the lines of each are
known. Hydra's own `hydra` node (output folders, logging, launchers) is left out: `run/folder.py` writes the run's
folder. The recipes that a curriculum lists are composed alone, and their stages merged first, so that this recipe's
differences have the last word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from hydra import version
from hydra._internal.defaults_list import DefaultsList, create_defaults_list
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from packaging.version import Version

from framework.recipe.apply import apply_override
from framework.recipe.catalogue import Catalogue
from framework.recipe.choices import (
    Choice,
    checked_choices,
    no_such_part,
    refuse_stale_parts,
    unchosen_preset,
    without_words,
    written_choices,
)
from framework.recipe.composition import PRIMARY, Composition
from framework.recipe.curriculum import (
    EVALS,
    given,
    listed_recipes,
    listed_stages,
    own_stage,
    placed_overrides,
    unused_evals,
    unused_roots,
    unused_weights,
)
from framework.recipe.defaults import RECIPE, Entry
from framework.recipe.draft import Draft
from framework.recipe.former_surface import former_lines, is_former
from framework.recipe.graft import (
    RECIPES,
    STAGE,
    STAGES,
    leaving,
    part_keys,
    placed_layer,
    rootless,
    sourceless,
    strangers,
)
from framework.recipe.layers import Layer, key_lines
from framework.recipe.overrides import (
    COMMAND_LINE,
    first_line,
    parse_overrides,
    refuse_unknown_recipe,
    split_reference,
)
from framework.recipe.problem import Key, Origin, Problem, RecipeError, nearest
from framework.recipe.resolve import refuse_explosion
from framework.recipe.safe_yaml import read_nodes
from framework.recipe.scale import Replaced, is_scale, keep_given_steps, replaced_choices, shortened_stages
from framework.recipe.sources import Repository

PART = "stage/data/part"
"""The preset that every stream of a stage's data starts from."""


def compose(overrides: Sequence[str], catalogue: Catalogue | None = None) -> Composition:
    """Compose `recipe=NAME` with the other overrides. Raises `RecipeError` with every fault of composing."""
    composition = compose_with_faults(overrides, catalogue)
    if composition.faults:
        raise RecipeError(composition.faults)
    return composition


def compose_with_faults(overrides: Sequence[str], catalogue: Catalogue | None = None) -> Composition:
    """Compose for the check, which reports all faults at once.

    Faults that leave a tree to examine (an override of an unknown key, a misspelt preset) are in `.problems`. Raises
    `RecipeError` for those that do not (an unknown recipe, a file that is not YAML).
    """
    catalogue = catalogue or Catalogue()
    catalogue.make_plugins_importable()
    version.VersionBase.instance().setbase(Version("1.3"))
    repository = Repository(catalogue)
    draft = _draft(overrides, repository, ())
    config = OmegaConf.create(draft.values)
    OmegaConf.set_struct(config, True)
    for override in draft.overrides:
        if (unchosen := unchosen_preset(override, draft.values, repository, draft.choices)) is not None:
            draft.problems.append(unchosen)
        else:
            apply_override(config, draft.origins, override, draft.problems)
    raw = OmegaConf.to_container(config, resolve=False)
    refuse_explosion(raw, draft.origin)
    draft.problems += sourceless(raw, draft.origin)
    keep_given_steps(config, draft.origins)
    _name_run(config, draft.origins, draft.choices)
    return Composition(
        catalogue,
        tuple(overrides),
        config,
        draft.layers,
        draft.origins,
        draft.choices,
        list(dict.fromkeys(draft.problems)),
        own_stage=draft.own_stage,
        listed=draft.listed,
        replaced=_replaced(draft, OmegaConf.to_container(config, resolve=False)),
    )


def _draft(words: Sequence[str], repository: Repository, within: tuple[str, ...]) -> Draft:
    """The layers that `words` choose, merged. `within` are the curricula that list the recipe; it may not list them."""
    catalogue, problems = repository.catalogue, list[Problem]()
    parsed = list(parse_overrides(words, problems))
    refuse_unknown_recipe(parsed, catalogue)
    parsed = list(checked_choices(parsed, repository.groups, problems))
    recipe = next((str(each.value()) for each in parsed if each.key_or_group == RECIPE and not each.is_delete()), "")
    if former := list(_former(repository, recipe)):
        raise RecipeError(former)
    defaults = _defaults_list(repository, recipe, parsed, problems)
    known: dict[str, Any] = dict(defaults.overrides.known_choices)
    choices = {
        group: ", ".join(chosen) if isinstance(chosen, list) else str(chosen)
        for group, chosen in known.items()
        if chosen is not None
    }
    layers = [_layer(repository, default) for default in defaults.defaults]
    for layer in layers:
        problems += [*repository.defaults[layer.config_path].problems, *leaving(layer)]

    layers = [layer if layer.declares else without_words(layer, repository.groups, problems) for layer in layers]
    name = own_stage(layers, defaults.config_overrides, problems)
    if name is None:
        layers = list(_without_parts(layers, written_choices(repository, recipe, parsed), problems))
    recipes = listed_recipes(layers, defaults.config_overrides, problems, name, (*within, recipe), catalogue)
    scale = [f"scale={choices['scale']}"] if "scale" in choices else []
    listing = given(layers, defaults.config_overrides, RECIPES)[1] or COMMAND_LINE
    listed = [
        _draft([f"recipe={each.split()[0]}", *each.split()[1:], *scale], repository, (*within, recipe))
        for each in recipes
    ]
    overrides = placed_overrides(defaults.config_overrides, name)
    layers = [placed_layer(layer, name) for layer in layers]
    keys = [split_reference(override.key_or_group) for override in overrides]
    parts = [_read_layer(repository, PART, key) for key in part_keys(layers, keys)]

    draft = Draft(recipe, name, choices, problems, listed=tuple(recipes))
    if not within:
        draft.replaced += replaced_choices(written_choices(repository, recipe, parsed), choices)
    draft.merge([*layers[:1], *parts])
    for stage, of in listed_stages(listed, problems, listing):
        draft.take(of, (*STAGES, stage))
    draft.merge(layers[1:])
    is_given = any(override.key_or_group == "evals" for override in parsed)
    _drop_unchosen_evals(draft, repository.groups, warn=not (within or is_given))
    draft.layers += [layer for each in listed for layer in each.layers]
    draft.overrides = [override for override, key in zip(overrides, keys, strict=True) if key[:1] != (STAGE,)]
    problems += [*rootless(draft.values, keys, draft.origin), *strangers(draft.values, draft.origin)]
    draft.values.pop(STAGE, None)
    own = written_choices(repository, recipe, parsed)
    for place, each in enumerate(listed):
        problems += unused_roots(each, draft, written_choices(repository, each.recipe, ()))
        problems += unused_evals(each, draft, written_choices(repository, each.recipe, ()), own)
        if place == 0:
            problems += unused_weights(each, draft)
    return draft


def _replaced(draft: Draft, raw: Any) -> tuple[Replaced, ...]:
    """What the scale replaces of the recipe in the finished tree `raw`: what a later file or the command line sets, it
    does not.
    """
    scales = {layer.name for layer in draft.layers if is_scale(layer)}
    lasting = [each for each in draft.replaced if each.origin in (None, draft.origin(each.key))]
    return (*lasting, *shortened_stages(raw, draft.origins, scales, draft.recipe_files))


def _former(repository: Repository, recipe: str) -> Iterator[Problem]:
    """The lines of the recipe, where it is of the former surface, that become others."""
    if recipe:
        root = repository.nodes(f"{RECIPE}/{recipe}")
        if is_former(root):
            yield from former_lines(root, repository.name_of(f"{RECIPE}/{recipe}"))


def _defaults_list(
    repository: Repository, recipe: str, overrides: list[Override], problems: list[Problem]
) -> DefaultsList:
    """The files that take part. A choice that nothing makes before becomes a problem and is left out."""
    try:
        if recipe:
            refuse_stale_parts(repository, written_choices(repository, recipe, overrides), problems)
        while True:
            try:
                return create_defaults_list(repository, PRIMARY, overrides, prepend_hydra=False, skip_missing=False)
            except ConfigCompositionException as error:
                refused = re.search(r"Could not override '([^']+)'", str(error))
                again = re.search(r"Multiple values for (\S+)\. To override", str(error))
                mended = refused is not None and _drop_choice(refused[1], repository, recipe, overrides, problems)
                if not mended and not (again and _override_choice(again[1], repository, problems)):
                    raise
    except RecipeError as error:
        raise _unreadable(repository.catalogue) or error from error
    except (OmegaConfBaseException, ConfigCompositionException, ValueError) as error:
        raise RecipeError([*problems, Problem(COMMAND_LINE, "", first_line(error))]) from error


def _drop_choice(
    key: str, repository: Repository, recipe: str, overrides: list[Override], problems: list[Problem]
) -> bool:
    """Remove the choice `key` wherever it is made. Returns False where nobody makes it."""
    near, message = nearest(key, repository.groups), "the composition makes no such choice"
    if key.startswith(f"{STAGE}/") and key in repository.groups:
        near, message = None, no_such_part(key, written_choices(repository, recipe, overrides))
    for override in list(overrides):
        if override.get_key_element() == key:
            overrides.remove(override)
            problems.append(Problem(COMMAND_LINE, key, message, f"+{key}" if near == key else near))
            return True
    for config_path, position, entry in _makers(key, repository):
        if entry.override:
            repository.drop(config_path, position)
            near = f"{key} without override" if near == key else near
            problems.append(Problem(_line(repository, config_path, entry), f"defaults.{key}", message, near))
            return True
    return False


def _override_choice(key: str, repository: Repository, problems: list[Problem]) -> bool:
    """Make the choice `key`, which a recipe makes for a second time, replace the first one. Returns False where no
    recipe makes it.
    """
    for config_path, position, entry in _makers(key, repository):
        if config_path.startswith(f"{RECIPE}/") and entry.values is not None and not entry.override:
            right = replace(entry, name=f"/{key.partition('@')[0]}", override=True)
            entries = repository.defaults[config_path].entries
            repository.mend(config_path, [*entries[:position], *entries[position + 1 :], right])
            origin = _line(repository, config_path, entry)
            faults = repository.defaults[config_path].problems
            faults[:] = [each for each in faults if each.origin != origin]  # the one that follows has the whole line
            message = f"this choice replaces an earlier one; write {right.written}"
            problems.append(Problem(origin, f"defaults.{key}", message))
            return True
    return False


def _makers(key: str, repository: Repository) -> Iterator[tuple[str, int, Entry]]:
    """The entries of defaults lists that make the choice `key`, each with its file and its position there."""
    group, _, package = key.partition("@")
    for config_path, defaults in repository.defaults.items():
        base = RECIPE if config_path.startswith(f"{RECIPE}/") else config_path.rpartition("/")[0]
        for position, entry in enumerate(defaults.entries):
            if entry.group(base) == group and package.endswith(entry.package[1:]):
                yield config_path, position, entry


def _line(repository: Repository, config_path: str, entry: Entry) -> Origin:
    return Origin(repository.name_of(config_path), entry.line)


def _unreadable(catalogue: Catalogue) -> RecipeError | None:
    """The faults of all files that cannot be read, not of the first one alone; None when there is none."""
    problems: list[Problem] = []
    for folder in [*catalogue.conf_folders(), *catalogue.recipe_folders()]:
        for file in sorted(folder.rglob("*.yaml")):
            try:
                read_nodes(file, catalogue.name_of(file))
            except RecipeError as error:
                problems += error.problems
    return RecipeError(problems) if problems else None


def _layer(repository: Repository, default: ResultDefault) -> Layer:
    package = tuple(part for part in (default.package or "").split(".") if part)
    return _read_layer(repository, str(default.config_path), package)


def _read_layer(repository: Repository, config_path: str, package: Key) -> Layer:
    loaded = repository.load_config(config_path)
    if loaded is None:
        raise RecipeError([Problem(Origin(f"conf/{config_path}.yaml"), "", "no such file; a stage's data needs it")])
    values: Any = loaded.values
    for name in reversed(package):
        values = {name: values}
    lines = dict(key_lines(repository.nodes(config_path), package))
    declares = not config_path.startswith(f"{RECIPE}/")
    file, name = repository.file_of(config_path), repository.name_of(config_path)
    return Layer(config_path, file, name, values, lines, declares, package)


def _without_parts(layers: Iterable[Layer], choices: Sequence[Choice], problems: list[Problem]) -> Iterator[Layer]:
    """The layers but for parts of a stage, in a recipe without one: each is a problem where it is chosen."""
    parts = {choice.group: choice for choice in choices if choice.group.startswith(f"{STAGE}/")}
    for choice in parts.values():
        key = choice.group if choice.origin == COMMAND_LINE else f"defaults./{choice.group}"
        problems.append(Problem(choice.origin, key, no_such_part(choice.group, choices)))
    files = tuple(f"{group}/" for group in parts)
    yield from (layer for layer in layers if not layer.config_path.startswith(files))


def _drop_unchosen_evals(draft: Draft, groups: Mapping[str, Sequence[str]], warn: bool) -> None:
    """Leave out what a recipe changes of an eval that is not chosen: `evals=[]` drops its evals, changes and all. Where
    the recipe itself does not choose it, that is told. A name that no eval has is a fault.
    """
    chosen = {layer.config_path for layer in draft.layers}
    known = groups.get(EVALS, ())
    for name, value in list((draft.values.get(EVALS) or {}).items()):
        if not isinstance(value, dict) or "_target_" in value or f"{EVALS}/{name}" in chosen or not known:
            continue
        origin, key = draft.origin((EVALS, name)), f"{EVALS}.{name}"
        if name not in known:
            near = nearest(name, known)
            draft.problems.append(Problem(origin, key, f"there is no eval {name}", near and f"{EVALS}.{near}"))
        elif warn:
            message = f"has no effect, as the recipe does not choose it; write '- override /evals: [..., {name}]'"
            draft.problems.append(Problem(origin, key, message, warning=True))
        del draft.values[EVALS][name]
        for inside in [inside for inside in draft.origins if inside[:2] == (EVALS, name)]:
            del draft.origins[inside]


def _name_run(config: DictConfig, origins: dict[Key, Origin], choices: dict[str, str]) -> None:
    """Name a run without a name after its recipe, and after its scale unless that is full."""
    if OmegaConf.is_interpolation(config, "run"):  # a problem of its own, which `check` names
        return
    unnamed = isinstance(config.get("run"), DictConfig) and OmegaConf.is_missing(config.run, "name")
    if unnamed and "recipe" in choices:
        scale = choices.get("scale", "full")
        config.run.name = choices["recipe"] + ("" if scale == "full" else f"-{scale}")
        origins["run", "name"] = Origin("the recipe's name")
