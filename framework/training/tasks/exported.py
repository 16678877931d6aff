"""An exported folder as this repository reads it: the model, and the recipe that renders prompts for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file

from framework.checkpoint.history import Checkpoint
from framework.model.hf_classes import SENSORS_FILE
from framework.model.language_action import LanguageActionModel
from framework.recipe.instantiate import instantiate
from framework.recipe.stored import stored
from framework.run.files import read_json, write_json, write_text
from framework.run.layout import EXPORTED_RECIPE_FILE
from framework.training.build_model import build_model
from framework.training.tasks.train import Train
from framework.training.tasks.trained_run import TrainedRun

ORIGIN = "origin.json"
"""File of the run, the step and the hash of the exported weights."""
BACKBONE = "framework.model.backbone.PretrainedBackbone"
KEPT = ("max_pixels", "attention", "router_loss")
"""What is kept of the trained backbone's arguments; the folder's config.json says the rest."""


def write_recipe(trained: TrainedRun, name: str, checkpoint: Checkpoint, folder: Path) -> None:
    """Write the run's recipe to the export in `folder`, where the backbone is the folder's and has no adapters, and
    what was exported.
    """
    tree = _of_export(dict(trained.stored_recipe()), str(folder))
    tree["run"] = {**tree["run"], "folder": str(folder)}  # by which the paths inside it follow a folder that moves
    write_text(folder / EXPORTED_RECIPE_FILE, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=120))
    write_json(folder / ORIGIN, {"run": name, "step": checkpoint.step, "weights": checkpoint.hash})


def _of_export(node: Any, folder: str) -> Any:
    """`node` with the exported backbone in every model."""
    if isinstance(node, list):
        return [_of_export(each, folder) for each in node]
    if not isinstance(node, dict):
        return node
    made = {key: _of_export(value, folder) for key, value in node.items()}
    if str(made.get("_target_", "")).endswith(f".{LanguageActionModel.__name__}"):
        kept = {key: made["backbone"][key] for key in KEPT if made["backbone"].get(key) is not None}
        made["backbone"] = {"_target_": BACKBONE, "name": folder, **kept}
        made["adapters"] = None
    return made


def load_trained(folder: Path) -> tuple[str, Train, LanguageActionModel]:
    """A trained model from a run's folder (its newest checkpoint) or an exported one (collective).

    Returns:
        The name NAME@STEP of the weights, the task that trained them, and the model on its device, in evaluation mode.

    Raises `RecipeError` for a recipe that today's code refuses, `ValueError` for weights that are not the recipe's.
    """
    if not (folder / EXPORTED_RECIPE_FILE).is_file():
        trained = TrainedRun(str(folder), None)
        name, train = trained.recipe(inputs=False)
        checkpoint = trained.checkpoint()
        model = build_model(train.model, train.data.special_tokens, train.parallel)
        trained.load_weights(checkpoint, model)
        step = checkpoint.step
    else:
        train = instantiate(stored(folder, name=EXPORTED_RECIPE_FILE), inputs=False)
        origin = read_json(folder / ORIGIN)
        if origin is None:
            raise ValueError(f"{folder / ORIGIN}: no such file, which says what was exported; export the run again")
        name, step = origin["run"], origin["step"]
        model = build_model(train.model, train.data.special_tokens, train.parallel)
        model.init_weights()  # the backbone is the folder's
        _load_encoders(model, folder)
    model.to(train.parallel.device).eval()
    return f"{name}@{step}", train, model


def _load_encoders(model: LanguageActionModel, folder: Path) -> None:
    """Load the encoders' weights. Raises `ValueError` where the folder's are not those of the recipe."""
    try:
        model.encoders.load_state_dict(load_file(folder / SENSORS_FILE))
    except RuntimeError as error:
        raise ValueError(f"{folder / SENSORS_FILE}: is not of this recipe: {error}; export the run again") from error
