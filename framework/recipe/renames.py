"""The names of earlier trees in stored recipes, read as today's."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

TABLE = Path(__file__).with_name("renames.yaml")


@dataclass(frozen=True)
class Renames:
    """The rename table, `renames.yaml`, which says what each part is for."""

    modules: dict[str, str]
    """Old module -> new module."""
    classes: dict[str, str]
    """Old class, in its new module -> new name of the class."""
    arguments: dict[str, dict[str, str]]
    """New target -> old argument -> new argument."""
    removed: dict[str, list[str]]
    """New target -> arguments that are gone."""
    values: dict[str, dict[str, dict[str, Any]]]
    """New target -> new argument -> old value -> new value."""
    components: dict[str, dict[str, dict[str, Any]]]
    """New target -> new argument -> name -> component. The argument listed names once, all of them where it was null or
    absent, and takes a mapping from names to components now."""
    keys: dict[str, str]
    """Old dotted key of the tree -> new dotted key."""

    def target(self, name: str) -> str:
        """Today's name of the target `name`, which stays as it is where nothing was renamed."""
        module, _, attribute = name.rpartition(".")
        moved = f"{self.modules.get(module, module)}.{attribute}"
        renamed = self.classes.get(moved)
        return moved.rpartition(".")[0] + f".{renamed}" if renamed else moved

    def tree(self, tree: Any) -> Any:
        """A whole stored recipe under today's names, as plain containers."""
        return self._component(self._keys(tree, ""))

    def _keys(self, node: Any, at: str) -> Any:
        if not isinstance(node, dict):
            return node
        renamed = {}
        for name, value in node.items():
            key = f"{at}{name}"
            new = self.keys[key].rpartition(".")[2] if key in self.keys else name
            renamed[new] = self._keys(value, f"{key}.")
        return renamed

    def _component(self, node: Any) -> Any:
        if isinstance(node, list):
            return [self._component(value) for value in node]
        if not isinstance(node, dict):
            return node
        target = node.get("_target_")
        if not isinstance(target, str):
            return {name: self._component(value) for name, value in node.items()}
        today = self.target(target)
        arguments, values = self.arguments.get(today, {}), self.values.get(today, {})
        removed = self.removed.get(today, [])
        renamed: dict[Any, Any] = {}
        for name, value in node.items():
            new = arguments.get(str(name), name)
            if new in removed:
                continue
            by_value = values.get(str(new), {})
            renamed[new] = by_value.get(value, value) if isinstance(value, str) else self._component(value)
        for argument, named in self.components.get(today, {}).items():
            before = renamed.get(argument)
            if before is None or (isinstance(before, list) and set(before) <= set(named)):
                renamed[argument] = {name: dict(named[name]) for name in (named if before is None else before)}
        return renamed | {"_target_": today}


@functools.cache
def renames() -> Renames:
    """The table of this tree."""
    return Renames(**yaml.safe_load(TABLE.read_text(encoding="utf-8")))
