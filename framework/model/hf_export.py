"""Export to Hugging Face's format: a backbone that plain transformers loads, and the sensor encoders as extra files."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file
from transformers.utils import logging as transformers_logging

from framework.model.codecs.grammar import banned_ids
from framework.model.language_action import LanguageActionModel
from framework.model.lora import merge_adapters

SENSORS = "sensors.safetensors"
"""File of the encoders' weights."""
FACTS = "sensors.json"
"""File of the encoders' names and placeholders."""
MAX_SHARD_SIZE = "2GB"
"""Largest file of weights."""


def export(model: LanguageActionModel, folder: Path) -> None:
    """Write weights, configuration and processor for transformers to `folder`, and the encoders to `SENSORS`.

    `FACTS` lists the encoders. Adapters are merged into the weights of `model` itself, which has none afterwards.
    """
    merge_adapters(model)
    folder.mkdir(parents=True, exist_ok=True)
    _set_generation(model)
    transformers_logging.disable_progress_bar()  # a bar of files written, of which most models have one
    # `save_pretrained` copies one file's weights at a time.
    model.backbone.save_pretrained(folder, max_shard_size=MAX_SHARD_SIZE)
    model.processor.save_pretrained(folder)
    encoders = {name: tensor.contiguous() for name, tensor in model.encoders.state_dict().items()}
    save_file(encoders, folder / SENSORS)
    facts = {"encoders": list(model.encoders), "placeholders": model.placeholder_ids}
    (folder / FACTS).write_text(json.dumps(facts, indent=1))


def _set_generation(model: LanguageActionModel) -> None:
    """Let plain `generate()` answer as `framework.model.generate` does: it is greedy, stops at the chat template's end
    of turn, pads with what the tokenizer pads with, and never writes a token that no answer may contain.
    """
    tokenizer = model.processor.tokenizer
    settings = model.backbone.generation_config
    ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    settings.eos_token_id = list(dict.fromkeys([tokenizer.eos_token_id, *(end for end in ends if end is not None)]))
    settings.suppress_tokens = banned_ids(tokenizer, model.vocabulary)
    settings.do_sample = False
    settings.temperature = settings.top_p = settings.top_k = None  # those of sampling; transformers warns of them
    settings.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
