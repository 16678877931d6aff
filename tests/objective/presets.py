"""The objective's presets, composed as a recipe composes them and instantiated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig

PRESETS = Path(__file__).resolve().parents[2] / "conf" / "stage" / "objective"


def composed(name: str, *overrides: str) -> DictConfig:
    """The values of conf/stage/objective/`name`.yaml with its defaults; `overrides` as `stage.objective.chunk=8`."""
    with initialize_config_dir(str(PRESETS.parents[1]), version_base=None):
        values = compose(f"stage/objective/{name}", list(overrides))
    for group in ("stage", "objective", *name.split("/")[:-1]):
        values = values[group]
    return values


def preset(name: str, *overrides: str) -> Any:
    """What `composed` describes."""
    return instantiate(composed(name, *overrides))
