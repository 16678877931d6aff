"""One rank of the vocabulary's tests: the tiny model with a picture and one sensor, cut over ranks and whole."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from framework.model.backbone import RandomBackbone
from framework.model.encoders.ego import EgoEncoder
from framework.model.generate import sample
from framework.model.language_action import LanguageActionModel
from framework.objective.supervised import CrossEntropy
from framework.objective.token_logprobs import token_logprobs
from framework.parallel.mesh import Mesh
from framework.parallel.parallelism import Parallelism, world_size
from framework.parallel.sharding import reshard, unsharded
from framework.training.build_model import build_model
from tests.model.conftest import NOTHING, PRESET, make_batch
from tests.objective.bits import packed

CHUNK, TEMPERATURE, ENTROPY = 40, 0.8, 2.0


def build(tied: bool, attention: str) -> Callable[..., LanguageActionModel]:
    """The tiny model with an ego encoder."""
    architecture: dict[str, Any] = yaml.safe_load(PRESET.read_text())["architecture"] | {"tie_word_embeddings": tied}
    return functools.partial(
        LanguageActionModel, RandomBackbone(architecture, attention=attention), {"ego": EgoEncoder}
    )


def full(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class Widest:
    """A head that remembers how many logits of a position a rank had at most."""

    def __init__(self, model: LanguageActionModel) -> None:
        self.model = model
        self.columns = 0

    def __call__(self, hidden: Tensor) -> Tensor:
        logits = self.model.head(hidden)
        self.columns = max(self.columns, (logits.to_local() if isinstance(logits, DTensor) else logits).shape[-1])
        return logits


def asked(model: LanguageActionModel, padding: int) -> dict[str, Any]:
    """Scores with bans, a smoothed cross-entropy, answers; the gradients of the first two; and how many positions the
    second block was given, of the row that it lays out or of a batch with `padding` more than its longest row.
    """
    batch = make_batch(model, [("Which way?", 1, ("ego",)), NOTHING])
    for key in ("input_ids", "attention_mask", "mm_token_type_ids"):
        batch[key] = F.pad(batch[key], (padding, 0))  # type: ignore[literal-required]
    laid_out = model.lay_out(batch)
    length = laid_out["layout"]["size"] if "layout" in laid_out else batch["input_ids"].shape[1]
    given: list[int] = []
    second = model.backbone.model.language_model.layers[1]
    hook = second.register_forward_pre_hook(lambda _, args: given.append(args[0].shape[1]))
    hidden, head = model(batch).flatten(0, 1), Widest(model)
    generator = torch.Generator().manual_seed(5)
    taken = torch.randint(0, 1000, (len(hidden),), generator=generator)
    banned = torch.rand(len(hidden), model.vocabulary, generator=generator) < 0.3
    banned[3, 700:] = True  # nothing is left of the second rank's words
    banned[torch.arange(len(taken)), taken] = False
    taken[3], banned[3, 5] = 5, False
    scored = token_logprobs(hidden, head, taken, CHUNK, TEMPERATURE, packed(banned))
    slope = torch.linspace(-1, 2, len(taken))
    supervised = CrossEntropy(CHUNK, label_smoothing=0.1)(hidden, head, taken)
    ((slope * (scored.logprobs + ENTROPY * scored.entropies)).sum() + supervised.total).backward()
    reshard(model)
    hook.remove()
    with torch.no_grad(), unsharded(model):
        answers = sample(model.eval(), batch, model.processor.tokenizer, [None, None], 6, 1.0, seeds=[3, 4])
    return {
        "logprobs": scored.logprobs.detach(), "entropies": scored.entropies.detach(),
        "loss": supervised.total.detach(), "correct": supervised.correct, "columns": head.columns,
        "positions": given[0] / length,
        "tokens": [answer.tokens for answer in answers],
        "gradients": {name: full(p.grad) for name, p in model.named_parameters()},
    }  # fmt: skip


def furthest(found: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    """What differs, relative to the largest number there."""
    pairs = {name: (found[name], expected[name]) for name in ("logprobs", "entropies", "loss")}
    pairs |= {name: (value, expected["gradients"][name]) for name, value in found["gradients"].items()}
    return {name: float((one - two).abs().max() / two.abs().max()) for name, (one, two) in pairs.items()}


def ask_both(mesh: dict[str, int], tied: bool, attention: str, padding: int, out: Path) -> None:
    """Both models are asked the same; the first rank writes `out`."""
    make = build(tied, attention)
    torch.manual_seed(0)
    alone = make().eval()
    expected = asked(alone, padding)
    torch.manual_seed(0)
    model = build_model(make, (), Parallelism("cpu", world_size(), Mesh(**mesh), threads=1)).eval()
    model.init_weights()
    found = asked(model, padding)
    embedding: nn.Module = model.backbone.get_input_embeddings()
    if dist.get_rank() == 0:
        told = {
            "differences": furthest(found, expected), "columns": found["columns"], "vocabulary": model.vocabulary,
            "positions": found["positions"],
            "same": {name: bool(found[name] == expected[name]) for name in ("correct", "tokens")},
            "tied": embedding.weight is model.backbone.get_output_embeddings().weight,
            "rows": embedding.weight.to_local().shape[0],
        }  # fmt: skip
        out.write_text(json.dumps(told))
