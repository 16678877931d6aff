"""Floating-point operations of training Qwen3-VL, counted from the architecture's numbers and the batch's shapes.

A multiply-add counts as two. Only what the model needs is counted: causal attention half of the score matrix of every
sample by itself, however samples are packed or padded; the vision tower's attention inside each frame; logits where
something is learned. Norms, activations and embeddings' look-ups are left out: together below one per cent. The
backward pass takes another forward for the gradients of activations, where something before them trains, and one for
those of weights that train (Kaplan et al. 2020, arXiv 2001.08361, section 2.1); what is recomputed is told apart.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from framework.model.lora import adapter_parameters
from framework.scene.batch import IGNORE_INDEX, MicroBatch

if TYPE_CHECKING:
    from framework.model.encoders.base import Encoder
    from framework.model.language_action import LanguageActionModel

PARTS = ("dense", "attention", "vision", "encoders", "recomputed")
"""What a step's FLOPs are told apart by: the language model's linear layers and head; its attention; the vision tower;
the sensor encoders; and what is computed a second time in the backward pass, which is no model FLOP."""

ROWS = (4, 8)
"""Rows of a sensor with which an encoder's FLOPs are counted: few and many."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ForwardFlops:
    """FLOPs of one forward pass by part. `language_again` and `vision_again` are what the backward pass repeats of the
    linear layers where blocks are recomputed: all but a block's last layer, whose output no gradient needs.
    """

    language_dense: float
    language_attention: float
    vision_dense: float
    vision_attention: float
    head: float
    language_again: float
    vision_again: float
    encoders: float = 0.0

    @property
    def language(self) -> float:
        """The language model's blocks."""
        return self.language_dense + self.language_attention

    @property
    def vision(self) -> float:
        """The vision tower."""
        return self.vision_dense + self.vision_attention

    @property
    def total(self) -> float:
        """All of the forward pass."""
        return self.language + self.vision + self.head + self.encoders


def forward_flops(config: Any, tokens: float, patches: float, supervised: float, vocabulary: int) -> ForwardFlops:
    """FLOPs of one sample: `tokens` positions, one frame of `patches` patches, `supervised` positions that need logits.

    `config` is the backbone's Qwen3VLConfig.
    """
    return _flops(config, (tokens, tokens**2), (patches, patches**2), supervised, vocabulary)


def batch_flops(config: Any, batch: MicroBatch, vocabulary: int) -> ForwardFlops:
    """FLOPs of a micro-batch, which costs no more than its samples one by one. On a GPU this waits for the device."""
    lengths = sample_lengths(batch).double()
    supervised = int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
    moments = (float(lengths.sum()), float(lengths.square().sum()) - _unseen(batch))
    return _flops(config, moments, _frames(batch), supervised, vocabulary)


def sample_lengths(batch: MicroBatch) -> Tensor:
    """Positions of each sample `(samples,)` int64, without padding."""
    if "segments" not in batch:
        return batch["attention_mask"].sum(dim=1)
    return torch.cat([row.bincount()[1:] for row in batch["segments"]])


def _unseen(batch: MicroBatch) -> float:
    """The pairs of positions, in both orders, of answers that share a prompt and do not see each other."""
    if "shared_prefix" not in batch:
        return 0.0
    real = batch["attention_mask"].bool()
    answers = [row[seen].bincount()[1:].double() for row, seen in zip(batch["shared_prefix"], real, strict=True)]
    return sum(float(lengths.sum() ** 2 - lengths.square().sum()) for lengths in answers)


def _frames(batch: MicroBatch) -> tuple[float, float]:
    """Patches of all frames, and the sum of their squares: a frame's patches see each other and no other frame's."""
    sums = torch.zeros(2, dtype=torch.float64)
    for grid in (batch.get("image_grid_thw"), batch.get("video_grid_thw")):
        if grid is not None:
            frames, patches = grid[:, 0].double().cpu(), grid[:, 1:].prod(dim=1).double().cpu()
            sums += torch.stack([frames @ patches, frames @ patches.square()])
    return float(sums[0]), float(sums[1])


def _flops(
    config: Any, tokens: tuple[float, float], patches: tuple[float, float], supervised: float, vocabulary: int
) -> ForwardFlops:
    """FLOPs where the lengths of samples and of frames have these sums and sums of squares."""
    text, vision = config.text_config, config.vision_config
    hidden, heads = text.hidden_size, text.num_attention_heads * text.head_dim
    keys = text.num_key_value_heads * text.head_dim
    layer = 2 * hidden * heads + 2 * hidden * keys + 3 * hidden * text.intermediate_size
    layers = text.num_hidden_layers
    width, merged = vision.hidden_size, vision.spatial_merge_size**2
    block = 4 * width * width + 2 * width * vision.intermediate_size
    embedding = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2 * width
    merger = (width * merged) ** 2 + width * merged * vision.out_hidden_size
    mergers = 1 + len(vision.deepstack_visual_indexes)
    attention = 2.0 * layers * heads * tokens[1]
    vision_attention = 4.0 * vision.depth * width * patches[1]
    return ForwardFlops(
        language_dense=2.0 * layers * layer * tokens[0],
        language_attention=attention,
        vision_dense=2.0 * patches[0] * (vision.depth * block + embedding + mergers * merger / merged),
        vision_attention=vision_attention,
        head=2.0 * hidden * vocabulary * supervised,
        language_again=2.0 * layers * (layer - hidden * text.intermediate_size) * tokens[0],
        vision_again=2.0 * vision.depth * (block - width * vision.intermediate_size) * patches[0],
    )


class TrainingFlops:
    """What training `model` takes, by `PARTS`. Made when what trains has been chosen.

    `recomputed` is the share of the blocks' `linear` layers and `attention` that is done again in the backward pass.
    """

    def __init__(self, model: LanguageActionModel, recomputed: Mapping[str, float] | None = None) -> None:
        language, vision = model.backbone.model.language_model, model.backbone.model.visual
        inputs = [language.embed_tokens, vision, *model.encoders.values()]
        self.config, self.vocabulary = model.backbone.config, model.vocabulary
        self.recomputed = recomputed or {"linear": 0.0, "attention": 0.0}
        self.flow = _flow(language.layers, inputs)
        self.vision_flow = _flow(vision.blocks, [vision.patch_embed, vision.pos_embed])
        self.widened, self.vision_widened = _widened(language.layers), _widened(vision)
        self.dense = (1.0 + self.flow + _trained(language.layers)) * self.widened
        self.head = 1.0 + (self.flow > 0) + _trained(model.backbone.get_output_embeddings())
        self.vision = (1.0 + self.vision_flow + _trained(vision)) * self.vision_widened
        count_encoders(model.encoders)
        self.encoders = {name: _encoder_flops(encoder) for name, encoder in model.encoders.items()}

    def of(self, forward: ForwardFlops) -> dict[str, float]:
        """FLOPs of training, forward and backward, on what takes `forward` once."""
        linear = self.flow * self.widened * forward.language_again
        linear += self.vision_flow * self.vision_widened * forward.vision_again
        attention = self.flow * forward.language_attention + self.vision_flow * forward.vision_attention
        return {
            "dense": self.dense * forward.language_dense + self.head * forward.head,
            "attention": (1 + 2 * self.flow) * forward.language_attention,
            "vision": self.vision * forward.vision_dense + (1 + 2 * self.vision_flow) * forward.vision_attention,
            "encoders": forward.encoders,
            "recomputed": self.recomputed["linear"] * linear + self.recomputed["attention"] * attention,
        }

    def of_step(self, batches: Iterable[MicroBatch]) -> dict[str, float]:
        """FLOPs of training on the micro-batches of a step."""
        found = dict.fromkeys(PARTS, 0.0)
        for batch in batches:
            forward = replace(batch_flops(self.config, batch, self.vocabulary), encoders=self._encoders(batch))
            for part, amount in self.of(forward).items():
                found[part] += amount
        return found

    def _encoders(self, batch: MicroBatch) -> float:
        """FLOPs of training the encoders on the sensors of a batch."""
        total = 0.0
        for name, rows in batch.get("sensors", {}).items():
            fixed, of_row = self.encoders.get(name, (0.0, 0.0))
            samples, longest, _ = rows["values"].shape
            total += samples * (fixed + of_row * longest)
        return total


def _trained(module: nn.Module) -> float:
    """The share of a module's numbers that train."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in module.parameters()]
    return sum(size for size, trains in sizes if trains) / max(1, sum(size for size, _ in sizes))


def _widened(module: nn.Module) -> float:
    """A module's numbers, low-rank adapters included, by those without."""
    every = sum(parameter.numel() for parameter in module.parameters())
    return every / max(1, every - sum(parameter.numel() for parameter in adapter_parameters(module).values()))


def _flow(blocks: Sequence[nn.Module], inputs: Iterable[nn.Module]) -> float:
    """The share of `blocks` through which gradients pass: all when something in `inputs` trains, else those from the
    first that trains on.
    """
    if any(_trained(module) > 0 for module in inputs):
        return 1.0
    first = next((index for index, block in enumerate(blocks) if _trained(block) > 0), len(blocks))
    return 1.0 - first / len(blocks)


def count_encoders(encoders: nn.ModuleDict) -> None:
    """Count the FLOPs of encoders now: once they are sharded, they cannot be copied any more."""
    for name, encoder in encoders.items():
        if encoder not in _FORWARD:
            _FORWARD[encoder] = _count_forward(encoder, cast("Encoder", encoder).channels, name)


def _encoder_flops(encoder: nn.Module) -> tuple[float, float]:
    """FLOPs of training an encoder on one sample: a constant, and what each row adds."""
    few, of_row = _FORWARD[encoder]
    trained = _trained(encoder)
    passes = 2.0 + trained if trained else 1.0
    return passes * (few - ROWS[0] * of_row), passes * of_row


_FORWARD: WeakKeyDictionary[nn.Module, tuple[float, float]] = WeakKeyDictionary()
"""What was counted of encoders."""


def _count_forward(encoder: nn.Module, channels: int, name: str) -> tuple[float, float]:
    """FLOPs of an encoder's forward pass over `ROWS[0]` rows, and of each row more. Counted on the meta device, on
    which nothing is computed; encoders are linear in their rows, or nearly.
    """
    ghost = copy.deepcopy(encoder).to("meta")
    counts = []
    try:
        for rows in ROWS:
            values = torch.zeros((1, rows, channels), device="meta")
            with FlopCounterMode(display=False) as counter:
                ghost(values, values[..., 0] > 0)
            counts.append(float(counter.get_total_flops()))
    except (NotImplementedError, RuntimeError) as error:
        log.warning("encoder %s is left out of the FLOPs: on the meta device it says %s", name, error)
        return 0.0, 0.0
    return counts[0], (counts[1] - counts[0]) / (ROWS[1] - ROWS[0])
