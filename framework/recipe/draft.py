"""A recipe while it is composed: the layers merged so far, without OmegaConf, which takes 20 times as long."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hydra.core.override_parser.types import Override

from framework.recipe.annotation import described
from framework.recipe.graft import STAGE, leads_to_streams
from framework.recipe.layers import MISSING, Layer, child, merge, origin_of, record_origins, value_at
from framework.recipe.overrides import WHOLE_REFERENCE
from framework.recipe.problem import Key, Origin, Problem, dotted
from framework.recipe.scale import Replaced, is_scale, replaced_values


@dataclass
class Draft:
    """The layers of a recipe, merged in order."""

    recipe: str
    """The recipe's name; empty for the base alone."""
    own_stage: str | None
    """The name of the recipe's own stage; None where it has none."""
    choices: dict[str, str]
    """The preset chosen from each group."""
    problems: list[Problem]
    """What went wrong."""
    values: dict[str, Any] = field(default_factory=dict)
    """The tree, interpolations unresolved."""
    origins: dict[Key, Origin] = field(default_factory=dict)
    """What set each value."""
    layers: list[Layer] = field(default_factory=list)
    """The files merged."""
    listed: tuple[str, ...] = ()
    """The recipes that it lists as a curriculum."""
    replaced: list[Replaced] = field(default_factory=list)
    """What the scale replaces of it."""
    overrides: list[Override] = field(default_factory=list)
    """The overrides of values, still to be applied."""

    def merge(self, layers: Sequence[Layer]) -> None:
        """Merge `layers` over what there is."""
        for layer in layers:
            self.problems.extend(_lost_references(layer, self.values))
            if not layer.declares:
                layer = self._without_replaced(layer)
            if is_scale(layer):
                self.replaced += replaced_values(layer, self.values, self.origins, self.recipe_files)
            place = layer.package
            new, old = value_at(layer.values, place), value_at(self.values, place)
            if isinstance(new, dict):  # a file whose values are not taken leaves nothing there
                record_origins(self.origins, place, new, layer.origin, old)
            self.values = merge(self.values, layer.values)
            self.layers.append(layer)

    def _without_replaced(self, layer: Layer) -> Layer:
        """The layer without values in place of whole sections, `evals: 3`; each becomes a problem. What a component
        takes for an argument is left to the check.
        """

        def walk(values: Any, old: Any, at: Key) -> Any:
            kept = {}
            for name, value in values.items():
                key, before = (*at, str(name)), child(old, str(name))
                head, dot, rest = str(name).partition(".")
                if dot and (isinstance(child(old, head), dict) or (not at and head == STAGE)):
                    message = f"a dot does not lead into a mapping in a file; write {head}: {{{rest}: ...}}"
                    self.problems.append(Problem(layer.origin(key), dotted(key), message))
                    continue
                in_place = value is not None and value != MISSING and not (isinstance(value, str) and "${" in value)
                if isinstance(before, dict) and in_place and not isinstance(value, dict):
                    message = f"must be a mapping of its keys, each written 'key: value', not {described(value)}"
                    self.problems.append(Problem(layer.origin(key), dotted(key), message))
                    continue
                below = isinstance(before, dict) and ("_target_" not in before or leads_to_streams(key))
                inside = walk(value, before, key) if isinstance(value, dict) and below else value
                if inside or not value:
                    kept[name] = inside
            return kept

        return replace(layer, values=walk(layer.values, self.values, ()))

    def take(self, other: Draft, key: Key) -> None:
        """Take over the value at `key` of another recipe, with its origins."""
        value: Any = value_at(other.values, key)
        for name in reversed(key):
            value = {name: value}
        self.values = merge(self.values, value)
        self.origins |= {each: origin for each, origin in other.origins.items() if each[: len(key)] == key}
        self.replaced += [each for each in other.replaced if each.key[: len(key)] == key]

    @property
    def recipe_files(self) -> set[str]:
        """The names of the files merged that are recipes."""
        return {layer.name for layer in self.layers if not layer.declares}

    def origin(self, key: Key) -> Origin:
        """What set the value at `key`."""
        return origin_of(self.origins, key)


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

    yield from walk(layer.values, before, ())
