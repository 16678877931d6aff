"""Hydra's sources of presets and recipes: a folder of recipes is served as the group `recipe`."""

from __future__ import annotations

import functools
import itertools
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import omegaconf.base
import yaml
from hydra import version
from hydra._internal import defaults_list as hydra_defaults
from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.default_element import ConfigDefault, GroupDefault, InputDefault
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_yaml_loader

from framework.recipe.catalogue import Catalogue
from framework.recipe.defaults import RECIPE, Defaults, Entry, read_defaults, refuse_form
from framework.recipe.safe_yaml import read_nodes

NOTHING = OmegaConf.create({})
DEFAULTS = "defaults"
"""The key of a file's defaults list."""
REFERENCE = re.compile(r"\$\{([^}]*)\}?")
"""A choice that a name takes up."""
_map_of_choices = hydra_defaults._create_interpolation_map
"""Hydra's own."""


def _map_where_needed(
    overrides: hydra_defaults.Overrides, defaults_list: list[InputDefault], self_added: bool
) -> DictConfig:
    """The choices that entries of a file's defaults list name with `${}`; nothing reads the others.

    Hydra makes nodes of all choices for each file of a recipe, which was a quarter of the time of composing.
    """
    names = [
        entry.value if isinstance(entry, GroupDefault) else entry.path if isinstance(entry, ConfigDefault) else None
        for entry in defaults_list
    ]
    named = {choice for name in names for choice in REFERENCE.findall(str(name))}
    if not named:
        return NOTHING
    if named <= overrides.known_choices.keys():
        return OmegaConf.create({choice: overrides.known_choices[choice] for choice in named})
    return _map_of_choices(overrides, defaults_list, self_added)  # its error lists all choices


hydra_defaults._create_interpolation_map = _map_where_needed
version._get_version = functools.cache(version._get_version)  # asked for each node, of the same few versions
omegaconf.base.parse = functools.lru_cache(maxsize=4096)(omegaconf.base.parse)  # one reference stands in many places


class Loader(yaml.CSafeLoader):
    """OmegaConf's rules of what is a number, over libyaml's parser: its own is Python and takes six times as long."""

    yaml_implicit_resolvers = get_yaml_loader().yaml_implicit_resolvers


@dataclass
class Preset(ConfigResult):
    """A file, of which Hydra is given the defaults list alone: it reads no value, and its nodes take long to make."""

    values: dict[str, Any] = field(default_factory=dict)
    """What the file sets, as plain containers."""


class PresetSource(FileConfigSource):
    """A folder of presets. Unlike Hydra's own source it finds `# @package` anywhere among a file's leading comments.

    Hydra stops at the first comment that is not a header, and silently ignores a header below it.
    """

    @staticmethod
    def scheme() -> str:
        """The scheme of search path entries that hold presets."""
        return "presets"

    def load_config(self, config_path: str) -> Preset:
        """The file of `config_path`."""
        text = (Path(self.path) / self._normalize_file_name(config_path)).read_text(encoding="utf-8")
        lines = text.splitlines(keepends=True)
        comments = itertools.takewhile(lambda line: line.startswith("#") or not line.strip(), lines)
        headers = "".join(line for line in comments if line.lstrip("# ").startswith("@"))
        values = yaml.load(text, Loader=Loader) or {}
        listed = {DEFAULTS: values.pop(DEFAULTS)} if DEFAULTS in values else {}
        return Preset(
            config=OmegaConf.create(listed),
            path=f"{self.scheme()}://{self.path}",
            provider=self.provider,
            header=self._get_header_dict(headers),
            values=values,
        )


class RecipeSource(PresetSource):
    """A folder of recipes, served to Hydra as the group `recipe`."""

    @staticmethod
    def scheme() -> str:
        """The scheme of search path entries that hold recipes."""
        return "recipes"

    @staticmethod
    def inside(config_path: str) -> str | None:
        """`config_path` relative to the folder of recipes; None when it names something else."""
        head, _, rest = config_path.partition("/")
        return rest if head == RECIPE else None

    def load_config(self, config_path: str) -> Preset:
        """The recipe that Hydra calls `recipe/<name>`."""
        return super().load_config(self.inside(config_path) or config_path)

    def is_group(self, config_path: str) -> bool:
        """True for `recipe` and the folders below it."""
        inside = self.inside(config_path)
        return config_path == "" or (inside is not None and super().is_group(inside))

    def is_config(self, config_path: str) -> bool:
        """True for recipes."""
        inside = self.inside(config_path)
        return bool(inside) and super().is_config(str(inside))

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Recipes, and folders of recipes, below `config_path`."""
        if config_path == "":
            return [] if results_filter is ObjectType.CONFIG else [RECIPE]
        names: list[str] = []
        for entry in (Path(self.path) / str(self.inside(config_path))).iterdir():
            self._list_add_result(names, f"{config_path}/{entry.name}", entry.name, results_filter)
        return sorted(set(names))


class Repository(CachingConfigRepository):
    """All presets and recipes of a catalogue, each read once however many recipes of a curriculum are composed.

    What is wrong with a file's defaults list is kept in `defaults` and mended, so that the rest of the recipe is
    checked and all its faults are reported together.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        registry = SourcesRegistry.instance()
        registry.register(PresetSource)
        registry.register(RecipeSource)
        path = ConfigSearchPathImpl()
        for folder in catalogue.conf_folders():
            path.append("conf", f"presets://{folder}")
        for folder in catalogue.recipe_folders():
            path.append("recipes", f"recipes://{folder}")
        self._presets = ConfigRepository(path)
        super().__init__(self._presets)
        self.catalogue = catalogue
        self.groups = {**catalogue.groups(), **_recipe_groups(catalogue)}
        self.defaults: dict[str, Defaults] = {}
        self._nodes: dict[str, yaml.Node | None] = {}
        self._files: dict[str, Path] = {}

    def load_config(self, config_path: str) -> Preset | None:
        """The file of `config_path`, with its defaults list mended."""
        if config_path not in self._nodes and self.config_exists(config_path):
            self.nodes(config_path)  # refused before Hydra builds all that aliases, depth and tags ask for
        result = super().load_config(config_path)
        assert result is None or isinstance(result, Preset)
        if result is not None and config_path not in self.defaults:
            file, name = self.file_of(config_path), self.name_of(config_path)
            defaults = read_defaults(self.nodes(config_path), file, name, config_path, self.groups)
            self.defaults[config_path] = defaults
            if defaults.mended:
                result.defaults_list = self._made(config_path, defaults.entries)
            if config_path.startswith(f"{RECIPE}/") and result.header.get("package") is None:
                result.header["package"] = "_global_"
        return result

    def nodes(self, config_path: str) -> yaml.Node | None:
        """The YAML nodes of the file of `config_path`, with their lines."""
        if config_path not in self._nodes:
            name = self.name_of(config_path)
            nodes = read_nodes(self.file_of(config_path), name)
            refuse_form(nodes, name)
            self._nodes[config_path] = nodes
        return self._nodes[config_path]

    def mend(self, config_path: str, entries: list[Entry]) -> None:
        """Go on as if the file's defaults list had these `entries`."""
        self.defaults[config_path].entries = entries
        result = super().load_config(config_path)
        assert result is not None
        result.defaults_list = self._made(config_path, entries)

    def drop(self, config_path: str, position: int) -> None:
        """Go on without the entry `position` of the file's defaults list."""
        entries = self.defaults[config_path].entries
        self.mend(config_path, [*entries[:position], *entries[position + 1 :]])

    def _made(self, config_path: str, entries: list[Entry]) -> list[InputDefault]:
        items = OmegaConf.create([entry.item() for entry in entries])
        return self._presets._create_defaults_list(config_path, items)

    def file_of(self, config_path: str) -> Path:
        """The file that serves `config_path`."""
        if config_path not in self._files:
            source: ConfigSource = next(source for source in self.get_sources() if source.is_config(config_path))
            inside = RecipeSource.inside(config_path) if isinstance(source, RecipeSource) else config_path
            self._files[config_path] = Path(source.path) / f"{inside}.yaml"
        return self._files[config_path]

    def name_of(self, config_path: str) -> str:
        """The file of `config_path` as messages name it."""
        return self.catalogue.name_of(self.file_of(config_path))


def _recipe_groups(catalogue: Catalogue) -> dict[str, list[str]]:
    """Recipes as a group, and those in a folder also as a group below it."""
    groups = {RECIPE: list(catalogue.recipes())}
    for recipe in catalogue.recipes():
        folder, _, name = recipe.rpartition("/")
        if folder:
            groups.setdefault(f"{RECIPE}/{folder}", []).append(name)
    return groups
