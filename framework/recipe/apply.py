"""Applies the overrides of values to the composed tree, and finds the key that a misspelt one means."""

from __future__ import annotations

from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from framework.recipe.annotation import described
from framework.recipe.graft import STAGE, STAGES
from framework.recipe.layers import child, children, leaves, record_origins, value_at
from framework.recipe.overrides import COMMAND_LINE, first_line, place, split_reference
from framework.recipe.problem import Key, Origin, Problem, dotted, nearest


def apply_override(config: DictConfig, origins: dict[Key, Origin], override: Override, problems: list[Problem]) -> None:
    """Apply one override. If the key leads through an interpolation, the value is set where it is written.

    An argument that a component's file leaves at its default can be set without Hydra's `+`, and so can the entries of
    a mapping that is such an argument: the check knows it.
    """
    raw = OmegaConf.to_container(config, resolve=False)
    key = place(raw, split_reference(override.key_or_group))
    override.key_or_group = dotted(key)
    parent = OmegaConf.select(config, dotted(key[:-1]), throw_on_resolution_failure=False) if key[1:] else config
    here = OmegaConf.select(config, dotted(key), throw_on_resolution_failure=False)
    if parent is None and key[1:] and not override.is_delete():
        off = _off(config, key)
        if off:
            message = f"{dotted(off)} is null: choose a preset of it first, or set the whole"
            problems.append(Problem(COMMAND_LINE, dotted(key), message))
            return
    nodes = [parent, here]
    if not any(name[: len(key) - 1] == key[:-1] and origin != COMMAND_LINE for name, origin in origins.items()):
        nodes.append(OmegaConf.select(config, dotted(key[:-2]), throw_on_resolution_failure=False) if key[2:] else None)
    in_component = any(isinstance(node, DictConfig) and "_target_" in node for node in nodes)
    try:
        if in_component and not override.is_delete():
            OmegaConf.update(config, dotted(key), override.value(), merge=True, force_add=True)
        else:
            ConfigLoaderImpl._apply_overrides_to_config([override], config)
    except (ConfigCompositionException, OmegaConfBaseException) as error:
        if isinstance(value_at(raw, key), dict):
            message = f"must be a mapping of its keys, not {described(override.value())}"
            problems.append(Problem(COMMAND_LINE, dotted(key), message))
            return
        message = "there is no such key" if "Could not override" in str(error) else first_line(error)
        problems.append(Problem(COMMAND_LINE, dotted(key), message, _spelt(key, raw) or end_of(key, raw)))
        return
    if override.is_delete():
        for inside in [other for other in origins if other[: len(key)] == key]:
            del origins[inside]
    else:
        value = override.value()
        made = [key[:depth] for depth in range(1, len(key)) if value_at(raw, key[:depth]) is None]
        origins |= dict.fromkeys(made, COMMAND_LINE)
        plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        record_origins(origins, key, plain, lambda _: COMMAND_LINE, value_at(raw, key))


def _off(config: DictConfig, key: Key) -> Key | None:
    """The part above `key` that is switched off by null; None where there is none."""
    node: Any = OmegaConf.to_container(config, resolve=False)
    for depth, name in enumerate(key[:-1], 1):
        if isinstance(node, dict) and name in node and node[name] is None:
            return key[:depth]
        node = child(node, name)
    return None


def _spelt(key: Key, raw: Any) -> str | None:
    """The key of the tree `raw` that `key` misspells, name by name; None where there is none."""
    node, right = raw, Key()
    stages = [str(name) for name, _ in children(value_at(raw, STAGES))]
    for name in key:
        known = {each: (*right, each) for each, _ in children(node)}
        if not right and stages:
            known[STAGE] = (*STAGES, stages[0])
        near = name if name in known else nearest(name, known)
        if near is None:
            return None
        right = known[near]
        node = value_at(raw, right)
    return dotted(right)


def end_of(key: Key, raw: Any) -> str | None:
    """The key of the tree `raw` that `key` is the end of, as `lr` is of `optimizer.lr`, a stage's before any other."""
    ends = [each for each, _ in leaves(raw) if each[-len(key) :] == key and each != key]
    return dotted(min(ends, key=lambda each: (each[: len(STAGES)] != STAGES, len(each)))) if ends else None
