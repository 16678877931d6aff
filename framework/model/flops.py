"""Floating-point operations of training a backbone, counted from the architecture and the shapes of the batch.

A multiply-add counts as two. Model FLOPs are independent of packing and padding: causal attention is half of each
sample's own score matrix, the vision tower's attention stays inside each frame, logits count at supervised positions.
Of experts those count that a token is sent to. A recurrent layer counts by its recurrence, token by token; kernels that
work in chunks compute more. Norms, activations and embedding look-ups are left out; together they are below one per
cent. The backward pass costs another forward for the gradients of activations, where an earlier module trains, and
another for those of weights that train (Kaplan et al. 2020, arXiv 2001.08361, section 2.1). Recomputation is counted
separately.
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
from framework.model.quantized_base import count_weights
from framework.scene.batch import IGNORE_INDEX, MicroBatch

if TYPE_CHECKING:
    from framework.model.encoders.base import Encoder
    from framework.model.language_action import LanguageActionModel

PARTS = ("dense", "attention", "vision", "encoders", "recomputed")
"""Parts of a step's FLOPs: the language model's linear layers and head; its attention; the vision tower; the sensor
encoders; and recomputation in the backward pass, which are no model FLOPs."""

ROWS = (4, 8)
"""Two numbers of sensor rows for which an encoder's FLOPs are counted, to find the cost of a row."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ForwardFlops:
    """FLOPs of one forward pass by part."""

    language_dense: float
    """The linear layers of the language model's blocks."""
    language_attention: float
    """The attention scores and values of the language model's blocks."""
    vision_dense: float
    """The linear layers of the vision tower."""
    vision_attention: float
    """The attention scores and values of the vision tower."""
    head: float
    """The output head at supervised positions."""
    language_recomputed: float
    """The part of `language_dense` that the backward pass repeats where blocks are recomputed: all but a block's last
    layer, whose output no gradient needs."""
    vision_recomputed: float
    """The same of `vision_dense`."""
    encoders: float = 0.0
    """Training of the sensor encoders, forward and backward."""

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
        """The whole forward pass."""
        return self.language + self.vision + self.head + self.encoders


def forward_flops(config: Any, tokens: float, patches: float, supervised: float, vocabulary: int) -> ForwardFlops:
    """FLOPs of the forward pass of one sample.

    Args:
        config: The backbone's configuration.
        tokens: Positions of the sample.
        patches: Patches of its only frame.
        supervised: Positions that need logits.
        vocabulary: Rows of the output head.
    """
    return _flops(config, (tokens, tokens**2), (patches, patches**2), supervised, vocabulary)


def batch_flops(config: Any, batch: MicroBatch, vocabulary: int) -> ForwardFlops:
    """FLOPs of a micro-batch's forward pass, the sum over its samples. On a GPU this synchronizes with the device."""
    lengths = sample_lengths(batch).double()
    supervised = int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
    moments = (float(lengths.sum()), float(lengths.square().sum()) - _unseen_pairs(batch))
    return _flops(config, moments, _frames(batch), supervised, vocabulary)


def sample_lengths(batch: MicroBatch) -> Tensor:
    """Positions of each sample `(samples,)` int64, without padding."""
    if "segments" not in batch:
        return batch["attention_mask"].sum(dim=1)
    return torch.cat([row.bincount()[1:] for row in batch["segments"]])


def _unseen_pairs(batch: MicroBatch) -> float:
    """Pairs of positions, in both orders, of different answers to a shared prompt: they do not attend to each other."""
    if "shared_prefix" not in batch:
        return 0.0
    real = batch["attention_mask"].bool()
    answers = [row[valid].bincount()[1:].double() for row, valid in zip(batch["shared_prefix"], real, strict=True)]
    return sum(float(lengths.sum() ** 2 - lengths.square().sum()) for lengths in answers)


def _frames(batch: MicroBatch) -> tuple[float, float]:
    """Patches of all frames, and the sum of their squares: patches attend within their frame only."""
    sums = torch.zeros(2, dtype=torch.float64)
    for grid in (batch.get("image_grid_thw"), batch.get("video_grid_thw")):
        if grid is not None:
            frames, patches = grid[:, 0].double().cpu(), grid[:, 1:].prod(dim=1).double().cpu()
            sums += torch.stack([frames @ patches, frames @ patches.square()])
    return float(sums[0]), float(sums[1])


def _flops(
    config: Any, tokens: tuple[float, float], patches: tuple[float, float], supervised: float, vocabulary: int
) -> ForwardFlops:
    """FLOPs of a forward pass; `tokens` and `patches` are sums and sums of squares over samples and frames."""
    text, vision = config.text_config, config.vision_config
    hidden, heads = text.hidden_size, text.num_attention_heads * text.head_dim
    layers, full = text.num_hidden_layers, _attention_layers(text)
    mlp, last = _mlp(text)
    mixers = full * _attention(text) + (layers - full) * _delta_net(text)
    width, merged = vision.hidden_size, vision.spatial_merge_size**2
    block = 4 * width * width + 2 * width * vision.intermediate_size
    embedding = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2 * width
    merger = (width * merged) ** 2 + width * merged * vision.out_hidden_size
    mergers = 1 + len(getattr(vision, "deepstack_visual_indexes", ()))
    attention = 2.0 * full * heads * tokens[1]
    vision_attention = 4.0 * vision.depth * width * patches[1]
    return ForwardFlops(
        language_dense=2.0 * (mixers + layers * mlp) * tokens[0],
        language_attention=attention,
        vision_dense=2.0 * patches[0] * (vision.depth * block + embedding + mergers * merger / merged),
        vision_attention=vision_attention,
        head=2.0 * hidden * vocabulary * supervised,
        language_recomputed=2.0 * (mixers + layers * (mlp - last)) * tokens[0],
        vision_recomputed=2.0 * vision.depth * (block - width * vision.intermediate_size) * patches[0],
    )


def _attention_layers(text: Any) -> int:
    """The layers whose tokens attend to all before them; the others carry a state."""
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
    return sum(kind != "linear_attention" for kind in kinds)


def _attention(text: Any) -> int:
    """Multiply-adds of a token in the linear layers of attention."""
    heads, keys = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    gate = heads if "linear_attention" in (getattr(text, "layer_types", None) or ()) else 0  # of the output
    return int(text.hidden_size * (2 * heads + gate + 2 * keys))


def _delta_net(text: Any) -> int:
    """Multiply-adds of a token in Gated DeltaNet: its linear layers, its convolution, and the reading, the correction
    and the query of each head's state.
    """
    if not hasattr(text, "linear_num_value_heads"):
        return 0
    keys = text.linear_num_key_heads * text.linear_key_head_dim
    values = text.linear_num_value_heads * text.linear_value_head_dim
    mixed = 2 * keys + values
    projections = text.hidden_size * (mixed + 2 * values + 2 * text.linear_num_value_heads)
    return int(projections + mixed * text.linear_conv_kernel_dim + 3 * values * text.linear_key_head_dim)


def _mlp(text: Any) -> tuple[int, int]:
    """Multiply-adds of a token in an MLP, or in a router and the experts that it chooses, and those of the last
    layer."""
    if not hasattr(text, "num_experts_per_tok"):
        return 3 * text.hidden_size * text.intermediate_size, text.hidden_size * text.intermediate_size
    shared = getattr(text, "shared_expert_intermediate_size", 0)
    width = text.num_experts_per_tok * text.moe_intermediate_size + shared
    gates = text.num_experts + (1 if shared else 0)
    return text.hidden_size * (3 * width + gates), text.hidden_size * width


class TrainingFlops:
    """Counts the FLOPs of training a model, by `PARTS`.

    Args:
        model: The model, with its trainable parameters selected.
        recomputed: Shares of the blocks' `linear` layers and `attention` that the backward pass recomputes. None: none.
    """

    def __init__(self, model: LanguageActionModel, recomputed: Mapping[str, float] | None = None) -> None:
        language, vision = model.backbone.model.language_model, model.backbone.model.visual
        inputs = [language.embed_tokens, vision, *model.encoders.values()]
        self.config, self.vocabulary = model.backbone.config, model.vocabulary
        self.recomputed = recomputed or {"linear": 0.0, "attention": 0.0}
        self.flow = _flow(language.layers, inputs)
        self.vision_flow = _flow(vision.blocks, [vision.patch_embed, vision.pos_embed])
        self.lora_factor, self.vision_lora_factor = _lora_factor(language.layers), _lora_factor(vision)
        self.dense = (1.0 + self.flow + _trained(language.layers)) * self.lora_factor
        self.head = 1.0 + (self.flow > 0) + _trained(model.backbone.get_output_embeddings())
        self.vision = (1.0 + self.vision_flow + _trained(vision)) * self.vision_lora_factor
        count_encoders(model.encoders)
        self.encoders = {name: _encoder_flops(encoder) for name, encoder in model.encoders.items()}

    def of(self, forward: ForwardFlops) -> dict[str, float]:
        """FLOPs of training, forward and backward, for the FLOPs `forward` of one forward pass."""
        linear = self.flow * self.lora_factor * forward.language_recomputed
        linear += self.vision_flow * self.vision_lora_factor * forward.vision_recomputed
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
        flops = dict.fromkeys(PARTS, 0.0)
        for batch in batches:
            forward = replace(batch_flops(self.config, batch, self.vocabulary), encoders=self._encoders(batch))
            for part, amount in self.of(forward).items():
                flops[part] += amount
        return flops

    def _encoders(self, batch: MicroBatch) -> float:
        """FLOPs of training the encoders on a batch's sensors."""
        total = 0.0
        for name, rows in batch.get("sensors", {}).items():
            fixed, of_row = self.encoders.get(name, (0.0, 0.0))
            samples, longest, _ = rows["values"].shape
            total += samples * (fixed + of_row * longest)
        return total


def _trained(module: nn.Module) -> float:
    """The share of a module's weights that train."""
    return count_weights(module, trainable_only=True) / max(1, count_weights(module))


def _lora_factor(module: nn.Module) -> float:
    """A module's number of parameters with low-rank adapters, divided by that without."""
    total = count_weights(module)
    return total / max(1, total - sum(parameter.numel() for parameter in adapter_parameters(module).values()))


def _flow(blocks: Sequence[nn.Module], inputs: Iterable[nn.Module]) -> float:
    """The share of `blocks` that gradients pass through.

    It is 1 when anything in `inputs` trains, else the share of blocks from the first trainable one on.
    """
    if any(_trained(module) > 0 for module in inputs):
        return 1.0
    first = next((index for index, block in enumerate(blocks) if _trained(block) > 0), len(blocks))
    return 1.0 - first / len(blocks)


def count_encoders(encoders: nn.ModuleDict) -> None:
    """Count the FLOPs of encoders and keep the result: sharded encoders can no longer be copied."""
    for name, encoder in encoders.items():
        if encoder not in _FORWARD:
            _FORWARD[encoder] = _count_forward(encoder, cast("Encoder", encoder).channels, name)


def _encoder_flops(encoder: nn.Module) -> tuple[float, float]:
    """FLOPs of training an encoder on one sample: a constant, and those of each row."""
    few, of_row = _FORWARD[encoder]
    trained = _trained(encoder)
    passes = 2.0 + trained if trained else 1.0
    return passes * (few - ROWS[0] * of_row), passes * of_row


_FORWARD: WeakKeyDictionary[nn.Module, tuple[float, float]] = WeakKeyDictionary()
"""The results of `count_encoders`."""


def _count_forward(encoder: nn.Module, channels: int, name: str) -> tuple[float, float]:
    """FLOPs of an encoder's forward pass over `ROWS[0]` rows, and of each further row.

    They are counted on the meta device, where nothing is computed. Encoders are linear in their rows, or nearly.
    """
    meta_encoder = copy.deepcopy(encoder).to("meta")
    counts = []
    try:
        for rows in ROWS:
            values = torch.zeros((1, rows, channels), device="meta")
            with FlopCounterMode(display=False) as counter:
                meta_encoder(values, values[..., 0] > 0)
            counts.append(float(counter.get_total_flops()))
    except (NotImplementedError, RuntimeError) as error:
        log.warning("encoder %s is not counted in the FLOPs: it does not run on the meta device: %s", name, error)
        return 0.0, 0.0
    return counts[0], (counts[1] - counts[0]) / (ROWS[1] - ROWS[0])
