"""Hugging Face out and in: the backbone as plain transformers loads it, the sensor pieces beside it."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from framework.model.assembly import LanguageActionModel

SENSORS = "sensors.safetensors"
FACTS = "sensors.json"


def export(model: LanguageActionModel, folder: Path) -> None:
    """Write `folder`: weights, configuration and processor for transformers; `sensors.safetensors` with the encoders,
    `sensors.json` says which.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.backbone.save_pretrained(folder)
    model.processor.save_pretrained(folder)
    pieces = {name: tensor.contiguous() for name, tensor in model.encoders.state_dict().items()}
    save_file(pieces, folder / SENSORS)
    facts = {"encoders": list(model.encoders), "placeholders": model.placeholder_ids}
    (folder / FACTS).write_text(json.dumps(facts, indent=1))


def load_export(folder: Path, model: LanguageActionModel) -> None:
    """Load what `export` wrote into a model of the same recipe.

    Raises `FileNotFoundError` for a folder that was not exported, `ValueError` when its encoders are not the model's.
    """
    from transformers import Qwen3VLForConditionalGeneration

    facts = json.loads((folder / FACTS).read_text())
    if facts["encoders"] != list(model.encoders):
        raise ValueError(
            f"{folder / FACTS}: encoders {facts['encoders']}, the model has {list(model.encoders)}; "
            "use the recipe that trained it"
        )
    exported = Qwen3VLForConditionalGeneration.from_pretrained(folder)
    model.backbone.load_state_dict(exported.state_dict())
    model.encoders.load_state_dict(load_file(folder / SENSORS))
