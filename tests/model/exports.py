"""How a program that has the recipe reads an exported folder back."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file

from framework.model.hf_classes import SENSORS_FILE
from framework.model.hf_export import FACTS
from framework.model.language_action import LanguageActionModel
from framework.model.weights import load_pretrained


def load_export(folder: Path, model: LanguageActionModel) -> None:
    """Load an export into a model of the same recipe. Raises `ValueError` when its encoders are not the model's."""
    facts = json.loads((folder / FACTS).read_text())
    if facts["encoders"] != list(model.encoders):
        raise ValueError(f"{folder / FACTS}: encoders {facts['encoders']}, the model has {list(model.encoders)}")
    load_pretrained(model.backbone, folder)
    model.encoders.load_state_dict(load_file(folder / SENSORS_FILE))
