"""Export to Hugging Face's format: transformers loads the whole model from the folder with the file of code in it,
without that code the backbone alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from transformers import GenerationConfig
from transformers.utils import logging as transformers_logging

from framework.model.codecs.grammar import banned_ids
from framework.model.encoders.base import Encoder
from framework.model.hf_classes import SENSORS_FILE, LanguageActionForConditionalGeneration, LanguageActionProcessor
from framework.model.language_action import LanguageActionModel, placeholder
from framework.model.lora import merge_adapters
from framework.model.standalone import standalone
from framework.run.files import read_json, write_json, write_text

CODE = "modeling_language_action"
"""The module of the folder's own code."""
FACTS = "sensors.json"
"""File of the encoders' names and placeholders."""
PROCESSOR = "processor_config.json"
"""File of the processor's settings."""
DEFAULT_CLASS = "Qwen3VLForConditionalGeneration"
"""The class in `framework.model.hf_classes` that a family's own takes the place of."""
MAX_NEW_TOKENS = 2048
"""Length of an answer that does not end, unless a caller asks for another: transformers' own default cuts all."""
MAX_SHARD_SIZE = "2GB"
"""Largest file of weights."""


def export(
    model: LanguageActionModel, folder: Path, image_width: int | None = None, video_frames: int | None = None
) -> None:
    """Write weights, configuration and processor for transformers to `folder`, and the encoders to `SENSORS_FILE`.

    `CODE` has the classes that `AutoModel` and `AutoProcessor` take with `trust_remote_code=True`: the whole model, in
    the code that trained it. `FACTS` lists the encoders. Adapters are merged into the weights of `model` itself,
    which has none afterwards. The folder's own processor scales wider pictures down to the `image_width` (pixels) of
    training, and shows as many of a clip's frames as its `video_frames`; the backbone's plain one knows no such limits.

    Raises `ValueError` for an encoder whose code cannot be written as a file of its own, and for a model with an action
    head.
    """
    if model.action_head is not None:
        raise ValueError(
            "model.action_head: transformers has no place for it, and an export would drive worse than the run; export "
            "a run without one (model/action_head=none), or predict with this one (recipe=predict)"
        )
    merge_adapters(model)
    folder.mkdir(parents=True, exist_ok=True)
    _set_generation(model)
    sensors = write_code(model, folder)
    transformers_logging.disable_progress_bar()  # a bar of files written, of which most models have one
    model.backbone.config.sensors = sensors
    classes = ("AutoModel", "AutoModelForImageTextToText")
    model.backbone.config.auto_map = dict.fromkeys(classes, f"{CODE}.{LanguageActionForConditionalGeneration.__name__}")
    # `save_pretrained` copies one file's weights at a time.
    model.backbone.save_pretrained(folder, max_shard_size=MAX_SHARD_SIZE)
    model.processor.save_pretrained(folder)
    kept = ("token", "tokens", "channels")
    of_processor = {
        "auto_map": {"AutoProcessor": f"{CODE}.{LanguageActionProcessor.__name__}"},
        "sensors": {name: {key: of[key] for key in kept} for name, of in sensors.items()},
        "image_width": image_width,
        "video_frames": video_frames,
    }
    write_json(folder / PROCESSOR, (read_json(folder / PROCESSOR) or {}) | of_processor)
    encoders = {name: tensor.contiguous() for name, tensor in model.encoders.state_dict().items()}
    (folder / SENSORS_FILE).parent.mkdir(exist_ok=True)
    save_file(encoders, folder / SENSORS_FILE)
    facts = {"encoders": list(model.encoders), "placeholders": model.placeholder_ids}
    write_json(folder / FACTS, facts)


def write_code(model: LanguageActionModel, folder: Path) -> dict[str, dict[str, Any]]:
    """Write `CODE` to `folder`. Returns what its classes need to know of each encoder, the configuration's `sensors`.

    Raises `ValueError` for an encoder whose code cannot be written as a file of its own.
    """
    tokens = tokens_of(model)
    write_text(folder / f"{CODE}.py", _code(model))
    return {
        name: {
            "class": type(encoder).__name__,
            "arguments": model.encoder_arguments[name],
            "token": placeholder(name),
            "token_id": model.placeholder_ids[name],
            "tokens": tokens[name],
            "channels": encoder.channels,
        }
        for name, encoder in cast("Iterable[tuple[str, Encoder]]", model.encoders.items())
    }


@torch.no_grad()
def tokens_of(model: LanguageActionModel) -> dict[str, int | None]:
    """The tokens that each encoder makes of a sample; None where it makes one of each row.

    Encoders of their own count them: the model's may be sharded over ranks that do not ask. Raises `ValueError` for an
    encoder that does neither.
    """
    found: dict[str, int | None] = {}
    for name, encoder in cast("Iterable[tuple[str, Encoder]]", model.encoders.items()):
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            own = type(encoder)(**model.encoder_arguments[name])
        ones = (torch.ones(1, rows, dtype=torch.bool) for rows in (1, 2))
        made = [own(torch.zeros(*mask.shape, own.channels), mask) for mask in ones]
        counts = [features.shape[1] if keep is None else int(keep.sum()) for features, keep in made]
        if counts[0] != counts[1] and counts != [1, 2]:
            raise ValueError(
                f"model.encoders.{name}: makes {counts} tokens of 1 and 2 rows; exports know one a row, or a fixed "
                "number"
            )
        found[name] = counts[0] if counts[0] == counts[1] else None
    return found


def _code(model: LanguageActionModel) -> str:
    """The folder's own code: its classes on the family's, and the encoders."""
    classes = [*dict.fromkeys(type(encoder) for encoder in model.encoders.values())]
    text = standalone(
        [*classes, LanguageActionForConditionalGeneration], "The language-action model, with all sensors."
    )
    return text.replace(f"import {DEFAULT_CLASS}", f"import {model.family.network_class().__name__}")


def _set_generation(model: LanguageActionModel) -> None:
    """Let plain `generate()` answer as `framework.model.generate` does: it is greedy, stops at the chat template's end
    of turn, pads with what the tokenizer pads with, and never writes a token that no answer may contain.
    """
    tokenizer = model.processor.tokenizer
    of_backbone = model.backbone.generation_config
    ends = of_backbone.eos_token_id if isinstance(of_backbone.eos_token_id, list) else [of_backbone.eos_token_id]
    # Afresh: a backbone's own settings may search by beams, penalise repetitions or set a least length.
    model.backbone.generation_config = GenerationConfig(
        bos_token_id=of_backbone.bos_token_id,
        eos_token_id=list(dict.fromkeys([tokenizer.eos_token_id, *(end for end in ends if end is not None)])),
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        suppress_tokens=banned_ids(tokenizer, model.vocabulary),
        max_new_tokens=MAX_NEW_TOKENS,
        do_sample=False,
    )
