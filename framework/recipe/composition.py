"""A composed recipe: its tree, where each value came from, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from framework.recipe.catalogue import Catalogue
from framework.recipe.graft import spoken
from framework.recipe.layers import Layer, leaves, origin_of, value_at
from framework.recipe.overrides import WHOLE_REFERENCE, place
from framework.recipe.problem import Key, Origin, Problem, dotted
from framework.recipe.resolve import resolve
from framework.recipe.scale import Replaced

PRIMARY = "config"
"""The preset that every composition starts from: `conf/config.yaml`."""


@dataclass
class Composition:
    """A recipe and its overrides, composed.

    The configuration is read-only from here on, so the tree is resolved once and the recipe checked once, however
    many verbs, checks and tasks ask.
    """

    catalogue: Catalogue
    """The presets, recipes and plugins that it was composed from."""
    overrides: tuple[str, ...]
    """The words of the command line."""
    config: DictConfig
    """The merged tree, interpolations unresolved."""
    layers: list[Layer]
    """The files that it was merged from, in order."""
    origins: dict[Key, Origin]
    """What set each value."""
    choices: dict[str, str]
    """The preset chosen from each group; `recipe` among them."""
    problems: list[Problem] = field(default_factory=list)
    """What went wrong while composing."""
    stored_in: Path | None = None
    """The folder of the run that stored the recipe; None for one that was composed."""

    own_stage: str | None = None
    """The name of the recipe's own stage; None for a recipe without one, and for a stored recipe."""

    listed: tuple[str, ...] = ()
    """The recipes that it lists as a curriculum."""

    replaced: tuple[Replaced, ...] = ()
    """What its scale replaces of the recipe's values and choices."""

    cached_findings: list[Problem] | None = None
    """What `framework.recipe.examine.findings` found; None before anyone asked."""

    def __post_init__(self) -> None:
        OmegaConf.set_readonly(self.config, True)

    @property
    def recipe(self) -> str | None:
        """The recipe's name."""
        return self.choices.get("recipe")

    @property
    def faults(self) -> list[Problem]:
        """What of `problems` keeps the recipe from being used, in its own words."""
        return self.spoken(problem for problem in self.problems if not problem.warning)

    def spoken(self, problems: Iterable[Problem]) -> list[Problem]:
        """`problems` with the keys that the recipe writes in place of those that the resolved tree has."""
        if self.stored_in is not None:
            return list(problems)
        return [
            replace(
                each,
                key=spoken(each.key, self.own_stage),
                message=spoken(each.message, self.own_stage),
                nearest=each.nearest and spoken(each.nearest, self.own_stage),
            )
            for each in problems
        ]

    @property
    def scale_note(self) -> str:
        """One line on what the scale replaces of the recipe; empty where it replaces nothing."""
        if not self.replaced:
            return ""
        values = ", ".join(map(str, self.replaced))
        return f"scale={self.choices['scale']} replaces: {values} (a value on the command line wins)"

    @property
    def is_submitted(self) -> bool:
        """Whether the task is to be submitted as a job rather than run here."""
        return "_target_" in self.config.get("launch", {})

    @cached_property
    def raw(self) -> Any:
        """The tree as plain containers, interpolations and `???` kept as they are written."""
        return OmegaConf.to_container(self.config, resolve=False)

    @property
    def tree(self) -> Any:
        """The resolved tree as plain containers, shared by all who ask: not to be changed."""
        return self._resolved[0]

    @property
    def failed_interpolations(self) -> dict[Key, str]:
        """Why an interpolation fails, by the key of its value. The tree has `???` there."""
        return self._resolved[1]

    @cached_property
    def _resolved(self) -> tuple[Any, dict[Key, str]]:
        return resolve(self.config)

    def origin(self, key: Key) -> Origin:
        """What set the value at `key`. For a value inside an interpolated mapping: what set it where it is written."""
        return origin_of(self.origins, self.place(key))

    def provenance(self) -> dict[str, str]:
        """What set each value of the resolved tree, by dotted key, and the reference that each mapping was which is
        interpolated as a whole.
        """
        origins = {dotted(key): str(self.origin(key)) for key, _ in leaves(self.tree)}
        mappings = ((key, raw) for key, raw in leaves(self.raw) if isinstance(value_at(self.tree, key), dict))
        return origins | {dotted(key): raw for key, raw in mappings if WHOLE_REFERENCE.fullmatch(str(raw))}

    def place(self, key: Key) -> Key:
        """The key at which the value of `key` is written: interpolated mappings on the way are followed."""
        return place(self.raw, key)
