"""The resolved recipe that a run left in its folder, read back as a recipe: checked and instantiated like any other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from framework.recipe.catalogue import Catalogue
from framework.recipe.compose import compose_with_faults
from framework.recipe.composition import Composition
from framework.recipe.layers import Layer, children, key_lines, read_nodes, record
from framework.recipe.overrides import apply, parse
from framework.recipe.problem import Key, Origin, Problem, RecipeError
from framework.recipe.renames import renames

STORED = "run="
"""How the command line names a run's folder where it would name a recipe."""


def from_command_line(overrides: Sequence[str], catalogue: Catalogue | None = None) -> Composition:
    """The recipe that the command line names: `recipe=NAME` composed, or `run=FOLDER` as that run stored it.

    Faults that leave a tree to look at are in `.problems`. Raises `RecipeError` for those that do not.
    """
    folders = [word.removeprefix(STORED) for word in overrides if word.startswith(STORED)]
    if not folders:
        return compose_with_faults(overrides, catalogue)
    return stored(Path(folders[-1]), catalogue, [word for word in overrides if not word.startswith(STORED)])


def stored(run: Path, catalogue: Catalogue | None = None, overrides: Sequence[str] = ()) -> Composition:
    """The recipe of the run in folder `run`, under today's names, with `overrides` of single values applied.

    Where the folder was moved since, paths inside it follow. Raises `RecipeError` where there is no stored recipe.
    """
    catalogue = catalogue or Catalogue()
    catalogue.make_plugins_importable()
    file = run / "recipe.yaml"
    if not file.is_file():
        raise RecipeError([Problem(Origin(str(file)), "", "no such file: give the folder of a run that has begun")])
    written = yaml.safe_load(file.read_text(encoding="utf-8"))
    values = renames().tree(written)
    today = dict(_paired(written, values))
    lines = {today[key]: line for key, line in key_lines(read_nodes(file, str(file)))}
    before = values.get("run", {}).get("folder")
    if isinstance(before, str) and Path(before).resolve() != run.resolve():
        values = _moved(values, before, str(run))
    layer = Layer("recipe", file, str(file), (), values, lines, declares=True)
    origins: dict[Key, Origin] = {}
    record(origins, (), values, layer.origin)
    config = DictConfig(values)
    OmegaConf.set_struct(config, True)
    problems: list[Problem] = []
    for override in parse(overrides, problems):
        apply(config, origins, override, problems)
    choices = {"recipe": str(values.get("run", {}).get("name"))}
    return Composition(catalogue, tuple(overrides), config, [layer], origins, choices, problems)


def _paired(old: Any, new: Any, at: Key = (), now: Key = ()) -> Iterator[tuple[Key, Key]]:
    """Every key of `old` and what it is in `new`: a renaming keeps structure and order."""
    for (name, value), (renamed, same) in zip(children(old), children(new), strict=True):
        yield (*at, name), (*now, renamed)
        yield from _paired(value, same, (*at, name), (*now, renamed))


def _moved(values: Any, before: str, now: str) -> Any:
    """`values` with every path at or below folder `before` at or below `now`."""
    if isinstance(values, dict):
        return {name: _moved(value, before, now) for name, value in values.items()}
    if isinstance(values, list):
        return [_moved(value, before, now) for value in values]
    inside = isinstance(values, str) and (values == before or values.startswith(f"{before}/"))
    return f"{now}{values[len(before) :]}" if inside else values
