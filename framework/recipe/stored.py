"""The resolved recipe that a run left in its folder, read back as a recipe: checked and instantiated like any other."""

from __future__ import annotations

from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf

from framework.recipe.catalogue import Catalogue
from framework.recipe.compose import Composition
from framework.recipe.layers import Layer, key_lines, read_nodes, record
from framework.recipe.problem import Key, Origin, Problem, RecipeError


def stored(run: Path, catalogue: Catalogue | None = None) -> Composition:
    """What the run in folder `run` was composed of: one file whose keys are all there is. Raises `RecipeError`."""
    catalogue = catalogue or Catalogue()
    catalogue.make_plugins_importable()
    file = run / "recipe.yaml"
    if not file.is_file():
        raise RecipeError([Problem(Origin(str(file)), "", "no such file: give the folder of a run that has begun")])
    lines = dict(key_lines(read_nodes(file, str(file))))
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    layer = Layer("recipe", file, str(file), (), values, lines, declares=True)
    origins: dict[Key, Origin] = {}
    record(origins, (), values, layer.origin)
    config = DictConfig(values)
    OmegaConf.set_struct(config, True)
    return Composition(catalogue, (), config, [layer], origins, {})
