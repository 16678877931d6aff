"""What a scale replaces of a recipe, and what of the command line stands against it.

A scale has the last word over recipes, and the command line over both. The limit by which a scale shortens stages is
another key than a stage's steps: steps that the command line gives would lose to it, so it is lifted for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from framework.recipe.choices import Choice
from framework.recipe.defaults import SCALE
from framework.recipe.graft import STAGES
from framework.recipe.layers import MISSING, Layer, origin_of, settings, value_at
from framework.recipe.overrides import COMMAND_LINE
from framework.recipe.problem import Key, Origin, dotted

LIMIT: Key = ("curriculum", "max_steps_per_stage")
"""The upper limit of every stage's steps."""
GIVEN_STEPS = Origin("steps of the command line")
"""What lifts the limit."""


@dataclass(frozen=True, slots=True)
class Replaced:
    """A value of a recipe that the scale replaces."""

    key: Key
    """Its key, or the group of a choice."""
    old: Any
    """The recipe's value."""
    new: Any
    """The scale's."""
    origin: Origin | None = None
    """Where the scale sets it; None for a choice."""

    def __str__(self) -> str:
        key = self.key[2:] if self.key[:2] == STAGES else self.key
        return f"{dotted(key)} {self.old} -> {self.new}"


def is_scale(layer: Layer) -> bool:
    """Whether the file is a scale, or what a scale changes in a kind of stage."""
    return layer.config_path.startswith(f"{SCALE}/")


def replaced_values(
    layer: Layer, values: Any, origins: Mapping[Key, Origin], recipes: Iterable[str]
) -> Iterator[Replaced]:
    """The values that the files `recipes` set in the tree `values`, and that the scale's `layer` is to replace."""
    files = set(recipes)
    for key, new in settings(layer.values):
        old = value_at(values, key)
        if key and old != new and old != MISSING and origin_of(origins, key).file in files:
            yield Replaced(key, old, new, layer.origin(key))


def replaced_choices(choices: Iterable[Choice], chosen: Mapping[str, str]) -> Iterator[Replaced]:
    """The presets that the recipe chooses by `choices`, the strongest last, and that are not the ones `chosen`."""
    for choice in {each.group: each for each in choices}.values():
        old, new = ", ".join(choice.values), chosen.get(choice.group)
        if choice.origin != COMMAND_LINE and new not in (None, old):
            yield Replaced((choice.group,), old, new)


def shortened_stages(
    raw: Any, origins: Mapping[Key, Origin], scales: Iterable[str], recipes: Iterable[str]
) -> Iterator[Replaced]:
    """The stages of the tree `raw` that a limit of the files `scales` ends before the steps that `recipes` give."""
    limit, origin = value_at(raw, LIMIT), origin_of(origins, LIMIT)
    for name, stage in (value_at(raw, STAGES) or {}).items() if origin.file in set(scales) else ():
        key = (*STAGES, str(name), "steps")
        steps = stage.get("steps") if isinstance(stage, dict) else None
        longer = isinstance(steps, int) and isinstance(limit, int) and steps > limit
        if longer and origin_of(origins, key).file in set(recipes):
            yield Replaced(key, steps, limit, origin)


def keep_given_steps(config: DictConfig, origins: dict[Key, Origin]) -> None:
    """Lift the limit of stages' steps where the command line gives a stage more steps, but no limit. The other stages
    get the limit as their steps.
    """
    raw = OmegaConf.to_container(config, resolve=False)
    limit, stages = value_at(raw, LIMIT), value_at(raw, STAGES)
    if not isinstance(limit, int) or not isinstance(stages, dict) or origin_of(origins, LIMIT) == COMMAND_LINE:
        return
    steps = {(*STAGES, str(name), "steps"): value_at(stages, (str(name), "steps")) for name in stages}
    longer = [key for key, count in steps.items() if isinstance(count, int) and count > limit]
    if not any(origins.get(key) == COMMAND_LINE for key in longer):
        return
    for key in longer:
        if origins.get(key) != COMMAND_LINE:
            OmegaConf.update(config, dotted(key), limit)
            origins[key] = origin_of(origins, LIMIT)
    OmegaConf.update(config, dotted(LIMIT), None)
    origins[LIMIT] = GIVEN_STEPS
