"""Parses the overrides of the command line, and applies them to the composed tree."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from framework.recipe.catalogue import Catalogue
from framework.recipe.layers import child, leaves, record_origins
from framework.recipe.problem import Key, Origin, Problem, RecipeError, dotted, nearest

COMMAND_LINE = Origin("command line")
WHOLE_REFERENCE = re.compile(r"\$\{([\w\[\]-][\w.\[\]-]*)\}")


def split_reference(text: str) -> Key:
    """`a.b[0].c` as a key."""
    return tuple(part for part in re.split(r"[.\[\]]+", text) if part)


def place(raw: Any, key: Key) -> Key:
    """The key at which the value of `key` is written in the tree `raw`: interpolated mappings are followed."""
    node, walked, rest = raw, Key(), list(key)
    follows = 0
    while rest and follows < 100:
        walked = (*walked, rest.pop(0))
        node = child(node, walked[-1])
        whole = WHOLE_REFERENCE.fullmatch(node) if isinstance(node, str) and rest else None
        if whole:
            rest = [*split_reference(whole[1]), *rest]
            node, walked, follows = raw, Key(), follows + 1
    return key if rest else walked


SWEEPER = "hydra/sweeper"
"""The override that chooses a sweep's sweeper: `hydra/sweeper=optuna`."""
SETTING = "hydra.sweeper."
"""The prefix of the sweeper's settings: `hydra.sweeper.n_trials=20`."""


def parse_overrides(overrides: Iterable[str], problems: list[Problem]) -> Iterator[Override]:
    """The overrides that parse. A problem is added for each of the others."""
    parser = OverridesParser.create()
    for text in overrides:
        try:
            override = parser.parse_overrides([text])[0]
        except HydraException as error:
            problems.append(Problem(COMMAND_LINE, text, f"not an override: {first_line(error)}"))
            continue
        key = override.get_key_element()
        if key == SWEEPER or key.startswith(SETTING):
            problems.append(Problem(COMMAND_LINE, key, "is of a sweep: add -m"))
        elif override.is_sweep_override():
            problems.append(Problem(COMMAND_LINE, text, "several values need -m (write key=[a,b] for one list)"))
        else:
            yield override


def refuse_unknown_recipe(overrides: Iterable[Override], catalogue: Catalogue) -> None:
    """Raise `RecipeError` for a recipe that does not exist, in one line with the nearest name."""
    recipes = catalogue.recipes()
    for override in overrides:
        name = override.value() if override.key_or_group == "recipe" and not override.is_delete() else None
        if name is not None and name not in recipes:
            known = ", ".join(recipes) or "none"
            raise RecipeError(
                [
                    Problem(
                        COMMAND_LINE,
                        f"recipe={name}",
                        f"no such recipe; there are: {known}",
                        nearest(str(name), recipes),
                    )
                ]
            )


def apply_override(config: DictConfig, origins: dict[Key, Origin], override: Override, problems: list[Problem]) -> None:
    """Apply one override. If the key leads through an interpolation, the value is set where it is written.

    An argument that a component's file leaves at its default can be set without Hydra's `+`, and so can the entries of
    a mapping that is such an argument: the check knows it.
    """
    key = place(OmegaConf.to_container(config, resolve=False), split_reference(override.key_or_group))
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
        known = [dotted((*key[:-1], str(name))) for name in parent] if isinstance(parent, DictConfig) else []
        near = nearest(dotted(key), known) or _nearest_path(dotted(key), config)
        message = "there is no such key" if "Could not override" in str(error) else first_line(error)
        problems.append(Problem(COMMAND_LINE, dotted(key), message, near))
        return
    if override.is_delete():
        for inside in [other for other in origins if other[: len(key)] == key]:
            del origins[inside]
    else:
        value = override.value()
        record_origins(
            origins, key, OmegaConf.to_container(value) if OmegaConf.is_config(value) else value, lambda _: COMMAND_LINE
        )


def _off(config: DictConfig, key: Key) -> Key | None:
    """The part above `key` that is switched off by null; None where there is none."""
    node: Any = OmegaConf.to_container(config, resolve=False)
    for depth, name in enumerate(key[:-1], 1):
        if isinstance(node, dict) and name in node and node[name] is None:
            return key[:depth]
        node = child(node, name)
    return None


def _nearest_path(path: str, config: DictConfig) -> str | None:
    """The key that `path` is the end of, as `lr` is of `optimizer.lr`; else the key that is spelt like it."""
    known = [dotted(key) for key, _ in leaves(OmegaConf.to_container(config, resolve=False))]
    return next((key for key in known if key.endswith(f".{path}")), None) or nearest(path, known)


def first_line(error: BaseException) -> str:
    """The first line of the error's message, or of its cause's where it has none."""
    text = str(error).strip() or str(error.__cause__ or type(error).__name__).strip()
    return text.splitlines()[0]
