"""Hugging Face out and in: the backbone as plain transformers loads it, the sensor pieces beside it."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from framework.model.language_action import LanguageActionModel
from framework.model.lora import merge
from framework.model.weights import read

SENSORS = "sensors.safetensors"
FACTS = "sensors.json"
FILE = "2GB"
"""The most that a file of weights holds."""


def export(model: LanguageActionModel, folder: Path) -> None:
    """Write `folder`: weights, configuration and processor for transformers; `sensors.safetensors` with the encoders,
    `sensors.json` says which. Adapters are merged into the weights, those of `model` itself, which has none any more.
    """
    merge(model)
    folder.mkdir(parents=True, exist_ok=True)
    # What is written is copied, one file at a time.
    model.backbone.save_pretrained(folder, max_shard_size=FILE)
    model.processor.save_pretrained(folder)
    pieces = {name: tensor.contiguous() for name, tensor in model.encoders.state_dict().items()}
    save_file(pieces, folder / SENSORS)
    facts = {"encoders": list(model.encoders), "placeholders": model.placeholder_ids}
    (folder / FACTS).write_text(json.dumps(facts, indent=1))


def load_export(folder: Path, model: LanguageActionModel) -> None:
    """Load what `export` wrote into a model of the same recipe.

    Raises `FileNotFoundError` for a folder that was not exported, `ValueError` when its encoders are not the model's.
    """
    facts = json.loads((folder / FACTS).read_text())
    if facts["encoders"] != list(model.encoders):
        raise ValueError(
            f"{folder / FACTS}: encoders {facts['encoders']}, the model has {list(model.encoders)}; "
            "use the recipe that trained it"
        )
    read(model.backbone, folder)
    model.encoders.load_state_dict(load_file(folder / SENSORS))
