"""Composes a recipe and its overrides with Hydra, and records the line that set each value.

Hydra decides which files take part and in which order. They are merged here one by one, so that the lines of each are
known. Hydra's own `hydra` node (output folders, logging, launchers) is left out: `run/folder.py` writes the run's
folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import yaml
from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.defaults_list import DefaultsList, create_defaults_list
from hydra.core.default_element import GroupDefault, ResultDefault
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from packaging.version import Version

from framework.recipe.catalogue import Catalogue
from framework.recipe.composition import PRIMARY, Composition
from framework.recipe.layers import Layer, child, key_lines, record_origins
from framework.recipe.overrides import (
    COMMAND_LINE,
    WHOLE_REFERENCE,
    apply_override,
    first_line,
    parse_overrides,
    refuse_unknown_recipe,
)
from framework.recipe.problem import Key, Origin, Problem, RecipeError, dotted, nearest
from framework.recipe.safe_yaml import read_nodes
from framework.recipe.sources import Repository


def compose(overrides: Sequence[str], catalogue: Catalogue | None = None) -> Composition:
    """Compose `recipe=NAME` with the other overrides. Raises `RecipeError` with every fault of composing."""
    composition = compose_with_faults(overrides, catalogue)
    if composition.problems:
        raise RecipeError(composition.problems)
    return composition


def compose_with_faults(overrides: Sequence[str], catalogue: Catalogue | None = None) -> Composition:
    """Compose for the check, which reports all faults at once.

    Faults that leave a tree to examine (an override of an unknown key, a misspelt preset) are in `.problems`. Raises
    `RecipeError` for those that do not (an unknown recipe, a file that is not YAML).
    """
    catalogue = catalogue or Catalogue()
    catalogue.make_plugins_importable()
    version.VersionBase.instance().setbase(Version("1.3"))
    problems: list[Problem] = []
    parsed = list(parse_overrides(overrides, problems))
    refuse_unknown_recipe(parsed, catalogue)
    repository = Repository(catalogue)
    defaults = _defaults_list(repository, parsed, problems, catalogue)
    problems.extend(_misspelt_presets(repository, parsed, defaults, catalogue))

    config = OmegaConf.create()
    origins: dict[Key, Origin] = {}
    layers = []
    for default in defaults.defaults:
        layer = _layer(repository, default, catalogue)
        layers.append(layer)
        problems.extend(_lost_references(layer, OmegaConf.to_container(config, resolve=False)))
        loaded = repository.load_config(str(default.config_path))
        assert loaded is not None
        try:
            config.merge_with(ConfigLoaderImpl._embed_result_config(loaded, default.package).config)
        except OmegaConfBaseException as error:
            raise RecipeError([Problem(Origin(layer.name), "", f"cannot be merged: {first_line(error)}")]) from error
        record_origins(origins, layer.package, layer.values, layer.origin)
    OmegaConf.set_struct(config, True)
    for override in defaults.config_overrides:
        apply_override(config, origins, override, problems)
    choices = {key: value for key, value in defaults.overrides.known_choices.items() if value is not None}
    _name_run(config, origins, choices)
    return Composition(catalogue, tuple(overrides), config, layers, origins, choices, problems)


def _defaults_list(
    repository: Repository, overrides: list[Override], problems: list[Problem], catalogue: Catalogue
) -> DefaultsList:
    """The files that take part. A choice from an unknown group becomes a problem and is left out."""
    while True:
        try:
            return create_defaults_list(repository, PRIMARY, overrides, prepend_hydra=False, skip_missing=False)
        except ConfigCompositionException as error:
            refused = re.search(r"Could not override '([^']+)'", str(error))
            if refused is None or not _drop_choice(refused[1], repository, overrides, problems, catalogue):
                raise RecipeError([*problems, Problem(COMMAND_LINE, "", first_line(error))]) from error
        except RecipeError as error:
            raise _unreadable(catalogue) or error from error
        except (OmegaConfBaseException, ValueError) as error:
            raise RecipeError([*problems, Problem(COMMAND_LINE, "", first_line(error))]) from error


def _drop_choice(
    key: str, repository: Repository, overrides: list[Override], problems: list[Problem], catalogue: Catalogue
) -> bool:
    """Remove the choice `key` wherever it is made. Returns False where nobody makes it."""
    near, message = nearest(key, [*catalogue.groups(), "recipe"]), "the composition makes no such choice"
    for override in list(overrides):
        if override.get_key_element() == key:
            overrides.remove(override)
            problems.append(Problem(COMMAND_LINE, key, message, f"+{key}" if near == key else near))
            return True
    for path, loaded in repository.cache.items():
        for default in list(loaded.defaults_list or []) if loaded else []:
            if isinstance(default, GroupDefault) and default.override and _chooses(default, key):
                assert loaded is not None
                assert loaded.defaults_list is not None
                loaded.defaults_list.remove(default)
                file = repository.file_of(path.removeprefix("config_path="))
                name = catalogue.name_of(file)
                origin = Origin(name, _line_of_choice(file, name, key.partition("@")[0], None))
                problems.append(
                    Problem(origin, f"defaults.{key}", message, f"{key} without override" if near == key else near)
                )
                return True
    return False


def _chooses(default: GroupDefault, key: str) -> bool:
    """Whether `default`, as written in a file, is what Hydra calls `key` (`group` or `group@package`)."""
    group, _, package = key.partition("@")
    written = str(default.group).lstrip("/")
    return (group == written or group.endswith(f"/{written}")) and package.endswith(default.package or "")


def _misspelt_presets(
    repository: Repository, overrides: Iterable[Override], defaults: DefaultsList, catalogue: Catalogue
) -> Iterator[Problem]:
    for requested, loaded in repository.misspelt.items():
        group, _, name = requested.rpartition("/")
        message = f"no preset '{name}' in {group}/; there are: {', '.join(repository.get_group_options(group))}"
        origin = COMMAND_LINE
        if not any(override.key_or_group == group and override.value() == name for override in overrides):
            for default in defaults.defaults:
                file = repository.file_of(str(default.config_path))
                line = _line_of_choice(file, catalogue.name_of(file), group, name)
                if line is not None:
                    origin = Origin(catalogue.name_of(file), line)
        yield Problem(origin, f"defaults.{group}", message, loaded.rpartition("/")[2])


def _line_of_choice(file: Any, name: str, group: str, value: str | None) -> int | None:
    """The line of `file`'s defaults list that chooses from `group` (the preset `value`, where one is given)."""
    root = read_nodes(file, name)
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    for entry in (entry for key, list_ in pairs if key.value == "defaults" for entry in list_.value):
        for choice, chosen in entry.value if isinstance(entry, yaml.MappingNode) else []:
            written = choice.value.split(" ")[-1].partition("@")[0].lstrip("/")
            if group.endswith(written) and value in (None, chosen.value):
                return int(entry.start_mark.line) + 1
    return None


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


def _layer(repository: Repository, default: ResultDefault, catalogue: Catalogue) -> Layer:
    config_path = str(default.config_path)
    file = repository.file_of(config_path)
    loaded = repository.load_config(config_path)
    assert loaded is not None
    package = tuple(part for part in (default.package or "").split(".") if part)
    name = catalogue.name_of(file)
    lines = dict(key_lines(read_nodes(file, name), package))
    declares = not config_path.startswith("recipe/")
    return Layer(
        config_path, file, name, package, OmegaConf.to_container(loaded.config, resolve=False), lines, declares
    )


def _lost_references(layer: Layer, before: Any) -> Iterator[Problem]:
    """The places where a file sets keys inside a mapping that is interpolated as a whole. The merge would replace the
    interpolation by those few keys.
    """

    def walk(values: Any, old: Any, at: Key) -> Iterator[Problem]:
        if isinstance(values, dict) and isinstance(old, str) and "${" in old and "_target_" not in values:
            whole = WHOLE_REFERENCE.fullmatch(old)
            message = f"this would replace the whole of {old}; set the keys where they are written"
            yield Problem(layer.origin(at), dotted(at), message, whole and whole[1])
        elif isinstance(values, dict) and isinstance(old, dict):
            for name, value in values.items():
                yield from walk(value, child(old, str(name)), (*at, str(name)))

    old = before
    for name in layer.package:
        old = child(old, name)
    yield from walk(layer.values, old, layer.package)


def _name_run(config: DictConfig, origins: dict[Key, Origin], choices: dict[str, str]) -> None:
    """Name a run without a name after its recipe, and after its scale unless that is full."""
    unnamed = isinstance(config.get("run"), DictConfig) and OmegaConf.is_missing(config.run, "name")
    if unnamed and "recipe" in choices:
        scale = choices.get("scale", "full")
        config.run.name = choices["recipe"] + ("" if scale == "full" else f"-{scale}")
        origins["run", "name"] = Origin("the recipe's name")
