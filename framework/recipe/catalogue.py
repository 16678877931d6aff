"""The folders of presets, recipes and plugins. Imports neither Hydra nor any plugin, so that the help is fast."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from importlib.machinery import PathFinder
from pathlib import Path

import framework

_PACKAGE = Path(framework.__file__).resolve().parent
PLUGIN_ENTRY_POINTS = "framework.plugins"
_importable: set[str] = set()
"""Folders of plugins that this process put on the import path."""


def default_root() -> Path:
    """The folder of `conf/` and `recipes/`: inside the package when installed from a wheel, else the repository."""
    shipped = _PACKAGE / "_shipped"
    return shipped if shipped.is_dir() else _PACKAGE.parent


@dataclass(frozen=True, slots=True)
class Plugin:
    """A package with its own `conf/` and `recipes/`, which are always found. Its targets need `plugins: [name]` in the
    recipe.
    """

    name: str
    """The package's name."""
    folder: Path
    """The package's folder."""


@dataclass(frozen=True)
class Catalogue:
    """The presets, recipes and plugins below `root`, and the plugins that are installed."""

    root: Path = field(default_factory=default_root)

    @cached_property
    def _plugins(self) -> list[Plugin]:
        plugins = {plugin.name: plugin for plugin in _installed_plugins()}
        for marker in sorted((self.root / "plugins").glob("*/__init__.py")):
            plugins[marker.parent.name] = Plugin(marker.parent.name, marker.parent)
        return [plugins[name] for name in sorted(plugins)]

    def plugins(self) -> list[Plugin]:
        """All plugins, by name. One in `plugins/` hides an installed one of the same name."""
        return self._plugins

    def hides(self, name: str) -> bool:
        """Whether the plugin `name` in `plugins/` bears the name of a module that is installed or Python's own."""
        own = {plugin.name for plugin in self.plugins()} - {plugin.name for plugin in _installed_plugins()}
        if name not in own:
            return False
        plugins = {str((self.root / "plugins").resolve()), *_importable}
        elsewhere = [entry for entry in sys.path if str(Path(entry).resolve()) not in plugins]
        return name in sys.stdlib_module_names or PathFinder.find_spec(name, elsewhere) is not None

    def conf_folders(self) -> list[Path]:
        """The folders of presets: the repository's, then each plugin's."""
        own = [self.root / "conf", *(plugin.folder / "conf" for plugin in self.plugins())]
        return [folder for folder in own if folder.is_dir()]

    def recipe_folders(self) -> list[Path]:
        """The folders of recipes: the repository's, then each plugin's."""
        own = [self.root / "recipes", *(plugin.folder / "recipes" for plugin in self.plugins())]
        return [folder for folder in own if folder.is_dir()]

    def recipes(self) -> dict[str, Path]:
        """Every recipe's file by name."""
        files: dict[str, Path] = {}
        for folder in self.recipe_folders():
            for file in sorted(folder.rglob("*.yaml")):
                files.setdefault(file.relative_to(folder).with_suffix("").as_posix(), file)
        return files

    def groups(self) -> dict[str, list[str]]:
        """The names of the presets of every group."""
        names: dict[str, set[str]] = {}
        for folder in self.conf_folders():
            for file in folder.rglob("*.yaml"):
                group = file.parent.relative_to(folder).as_posix()
                if group != ".":
                    names.setdefault(group, set()).add(file.stem)
        return {group: sorted(names[group]) for group in sorted(names)}

    def name_of(self, file: Path) -> str:
        """`file` as messages name it: relative to the root where it lies below it."""
        return file.relative_to(self.root).as_posix() if file.is_relative_to(self.root) else str(file)

    def make_plugins_importable(self) -> None:
        """Append `plugins/` to the import path, so that plugins are imported by their own names."""
        folder = str(self.root / "plugins")
        if folder not in sys.path and (self.root / "plugins").is_dir():
            sys.path.append(folder)
            _importable.add(str(Path(folder).resolve()))


def _installed_plugins() -> Iterator[Plugin]:
    for entry in importlib.metadata.entry_points(group=PLUGIN_ENTRY_POINTS):
        package = entry.value.partition(".")[0]
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.submodule_search_locations:
            yield Plugin(package, Path(next(iter(spec.submodule_search_locations))))


def purpose(file: Path) -> str:
    """What a YAML file is for: its first comment line, apart from Hydra's `@package` header."""
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            text = line.strip()
            if text.startswith("#"):
                comment = text.lstrip("#").strip()
                if comment and not comment.startswith("@"):
                    return comment
            elif text:
                break
    return ""
