"""Backbones as components: pretrained from a hub or folder, or random with the tokenizer of this repository.

Both know the numbers of their architecture, so that `plan` needs neither weights nor a hub. What differs between the
families is in `framework.model.families`. Methods import `transformers` when they need it, because the import takes
seconds.
"""

from __future__ import annotations

import copy
import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import torch
from annotated_types import Interval

from framework.model.attention import attend_by_lengths, attention_kernels
from framework.model.families import Family, family_of
from framework.model.patches import multiply_patches
from framework.model.processor import TINY_PROCESSOR, extend_processor, load_processor, major_version, released_limits
from framework.model.weights import init_empty_weights, init_random, load_pretrained, materialize
from framework.recipe.component import component
from framework.recipe.ranges import Weight

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, Qwen3VLProcessor

ImageArea = Annotated[int, Interval(ge=1024, le=1 << 28)]
"""Pixels of an image."""


class Backbone(Protocol):
    """The vision-language model below the language-action model."""

    @property
    def hidden(self) -> int:
        """Width of the language model's embeddings."""
        ...

    def processor(self, tokens: Sequence[str] = ()) -> Qwen3VLProcessor:
        """The backbone's processor, with `SENSOR_TOKENS` and then `tokens` added as special tokens."""
        ...

    def offline_processor(self, tokens: Sequence[str] = ()) -> Qwen3VLProcessor:
        """A processor like `processor`, without access to a hub: `plan` counts tokens with it."""
        ...

    def config(self) -> PretrainedConfig:
        """The architecture's configuration, without access to weights or a hub."""
        ...

    def skeleton(self, processor: Qwen3VLProcessor | None) -> PreTrainedModel:
        """The network with parameters on the meta device.

        It has an embedding for each token of `processor`; None: as many as the architecture says.
        """
        ...

    def init_weights(self, network: PreTrainedModel, processor: Qwen3VLProcessor | None) -> None:
        """Initialize this rank's shard of a skeleton's parameters, which must be materialized."""
        ...


class TransformersBackbone(ABC):
    """The common part of random and pretrained backbones.

    Args:
        architecture: `model_type`, which names a family (see `framework.model.families`; None: `qwen3_vl`), `text` and
            `vision`, the arguments of the configuration classes of `transformers` (the text's include `rope_theta`,
            `mrope_section` and, where only a part of a head turns, `partial_rotary_factor`), and `tie_word_embeddings`.
        max_pixels: Cap on an image's size, in pixels; a merged token covers 32 x 32. None: the processor's own limit.
        attention: The attention implementation (see `attention_kernels`).
        router_loss: Coefficient of the loss that keeps the experts evenly busy (see
            `framework.objective.expert_balance`). None: the architecture's own, `router_aux_loss_coef`.
    """

    dtype = "float32"

    def __init__(
        self, architecture: Mapping[str, Any], max_pixels: int | None, attention: str, router_loss: float | None
    ) -> None:
        self.architecture = architecture
        self.max_pixels = max_pixels
        self.attention = attention
        self.router_loss = router_loss

    @property
    def hidden(self) -> int:
        """Width of the language model's embeddings."""
        return int(self.architecture["text"]["hidden_size"])

    def config(self) -> PretrainedConfig:
        """The configuration of `architecture`; token ids are those of the released checkpoints."""
        return make_config(self.architecture, attention_kernels(self.attention))

    def skeleton(self, processor: Qwen3VLProcessor | None) -> PreTrainedModel:
        """See `Backbone`. Raises `ValueError` for a `router_loss` where there are no experts."""
        config = self._configured()
        family = family_of(config.model_type)
        if self.router_loss is not None and not family.experts:
            raise ValueError(f"model.backbone.router_loss: {family.name} has no experts; set it to null")
        if self.router_loss is not None:
            config.text_config.router_aux_loss_coef = float(self.router_loss)
        if processor is not None:
            set_token_ids(config, processor)
            config.text_config.vocab_size = embedding_rows(config.text_config.vocab_size, len(processor.tokenizer))
        with init_empty_weights():
            network: PreTrainedModel = family.network_class()(config)
        attend_by_lengths(network)
        multiply_patches(network.model.visual)
        for parameter in network.parameters():
            parameter.data = parameter.data.to(getattr(torch, self.dtype))
        return network

    def build(self, processor: Qwen3VLProcessor | None) -> PreTrainedModel:
        """The unsharded, initialized network on torch's default device; on `meta` its skeleton, and nothing is read."""
        network = self.skeleton(processor)
        if torch.get_default_device().type != "meta":
            materialize(network, torch.get_default_device())
            network.tie_weights()
            self.init_weights(network, processor)
        return network

    @abstractmethod
    def init_weights(self, network: PreTrainedModel, processor: Qwen3VLProcessor | None) -> None:
        """See `Backbone`."""

    def _configured(self) -> PretrainedConfig:
        return self.config()


@component
class RandomBackbone(TransformersBackbone):
    """A backbone with random float32 weights, drawn from torch's seed.

    Args:
        architecture: See `TransformersBackbone`.
        processor_folder: Folder of the processor and tokenizer. None: the repository's own.
        max_pixels: See `TransformersBackbone`.
        attention: See `attention_kernels`.
        router_loss: See `TransformersBackbone`.
    """

    def __init__(
        self,
        architecture: Mapping[str, Any],
        processor_folder: str | None = None,
        max_pixels: ImageArea | None = None,
        attention: str = "auto",
        router_loss: Weight | None = None,
    ) -> None:
        super().__init__(architecture, max_pixels, attention, router_loss)
        self.processor_folder = processor_folder

    def processor(self, tokens: Sequence[str] = ()) -> Qwen3VLProcessor:
        """The folder's processor with the extra special tokens."""
        processor = load_processor(self.processor_folder or TINY_PROCESSOR)
        return extend_processor(processor, tokens, self.max_pixels)

    def offline_processor(self, tokens: Sequence[str] = ()) -> Qwen3VLProcessor:
        """See `Backbone`: the folder's."""
        return self.processor(tokens)

    def init_weights(self, network: PreTrainedModel, processor: Qwen3VLProcessor | None) -> None:
        """Draw the weights as `transformers` does, from torch's initial seed and each module's name."""
        init_random(network, torch.initial_seed())


@component
class PretrainedBackbone(TransformersBackbone):
    """A released or fine-tuned backbone.

    Args:
        name: Hub name or folder of the checkpoint.
        architecture: See `TransformersBackbone`. `plan` uses it; a checkpoint that contradicts it is refused. None:
            what the checkpoint's `config.json` says.
        revision: Commit of the hub's repository. None: its newest.
        dtype: Type of the weights in memory: `float32` where the precision plugin casts, `bfloat16` for half the
            memory.
        max_pixels: See `TransformersBackbone`.
        attention: See `attention_kernels`.
        router_loss: See `TransformersBackbone`.
    """

    def __init__(
        self,
        name: str,
        architecture: Mapping[str, Any] | None = None,
        revision: str | None = None,
        dtype: str = "float32",
        max_pixels: ImageArea | None = None,
        attention: str = "auto",
        router_loss: Weight | None = None,
    ) -> None:
        super().__init__(architecture or {}, max_pixels, attention, router_loss)
        self.name = name
        self.revision = revision
        self.dtype = dtype

    def processor(self, tokens: Sequence[str] = ()) -> Qwen3VLProcessor:
        """The checkpoint's own processor with the extra special tokens."""
        return extend_processor(load_processor(self.name, self.revision), tokens, self.max_pixels)

    def offline_processor(self, tokens: Sequence[str] = ()) -> Qwen3VLProcessor:
        """See `Backbone`: the checkpoint's where it is on this machine. Else the repository's small tokenizer, which
        needs somewhat more tokens for texts, with the released limits of images and clips.
        """
        from huggingface_hub import try_to_load_from_cache

        local = Path(self.name)
        if not local.is_dir():
            cached = try_to_load_from_cache(self.name, "tokenizer.json", revision=self.revision)
            if not isinstance(cached, str):
                return extend_processor(released_limits(load_processor(TINY_PROCESSOR)), tokens, self.max_pixels)
            local = Path(cached).parent
        return extend_processor(load_processor(local), tokens, self.max_pixels)

    def init_weights(self, network: PreTrainedModel, processor: Qwen3VLProcessor | None) -> None:
        """Load the weights from the checkpoint's files.

        Embeddings of tokens that it does not have start as the mean of the others, not as noise of another scale.
        """
        known = None if processor is None else len(load_processor(self.name, self.revision).tokenizer)
        load_pretrained(network, self._folder(), known)

    @property
    def hidden(self) -> int:
        """See `Backbone`."""
        return super().hidden if self.architecture else int(self._released().text_config.hidden_size)

    def config(self) -> PretrainedConfig:
        """See `Backbone`."""
        return super().config() if self.architecture else self._released()

    def _folder(self) -> Path:
        if Path(self.name).is_dir():
            return Path(self.name)
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(self.name, revision=self.revision, allow_patterns=["*.safetensors", "*.json"]))

    def _configured(self) -> PretrainedConfig:
        """The checkpoint's own configuration. Raises `ValueError` when it contradicts `architecture`."""
        if torch.get_default_device().type == "meta":
            return self.config()
        released = self._released()
        if self.architecture:
            self._compare(released)
        return released

    def _released(self) -> PretrainedConfig:
        """The configuration in the checkpoint's `config.json`. Raises `ValueError` for a family that there is not, and
        where the file cannot be read.
        """
        facts = copy.deepcopy(self._facts)
        family = family_of(facts.get("model_type", ""))
        config: PretrainedConfig = family.config_class().from_dict(facts)
        _refuse_square_experts(family, config.text_config.to_dict(), self.name)
        config._attn_implementation = attention_kernels(self.attention)
        return config

    @functools.cached_property
    def _facts(self) -> dict[str, Any]:
        """The content of `config.json`; read once, since each encoder asks for the model's width."""
        from transformers import PretrainedConfig

        try:
            facts, _ = PretrainedConfig.get_config_dict(self.name, revision=self.revision)
        except OSError as error:
            raise ValueError(
                f"model.backbone.name: the config.json of {self.name} cannot be read ({error}); correct the name or "
                "folder, or give model.backbone.architecture, with which `plan` needs no hub"
            ) from error
        return dict(facts)

    def _compare(self, released: PretrainedConfig) -> None:
        expected = self.config()
        if released.model_type != expected.model_type:
            raise ValueError(
                f"{self.name}: model_type is {released.model_type}, the recipe's model.backbone.architecture is of "
                f"{expected.model_type}: choose the preset of this checkpoint"
            )
        for part in ("text", "vision"):
            theirs, ours = getattr(released, f"{part}_config"), getattr(expected, f"{part}_config")
            for key in self.architecture[part]:
                if hasattr(ours, key) and key not in ("rope_theta", "vocab_size"):
                    value, actual = getattr(ours, key), getattr(theirs, key)
                    if (list(value) if isinstance(value, tuple) else value) != actual:
                        raise ValueError(
                            f"{self.name}: {part}.{key} is {actual}, the recipe's "
                            f"model.backbone.architecture.{part}.{key} says {value}: choose the preset of this "
                            "checkpoint or correct the number"
                        )


def make_config(architecture: Mapping[str, Any], attention: str) -> PretrainedConfig:
    """The configuration of `architecture`, for transformers 4.57 (rope_scaling) and 5 (rope_parameters).

    Raises `ValueError` for a family that there is not or that the installed transformers lacks, and for experts whose
    weights are square.
    """
    family = family_of(architecture.get("model_type") or "qwen3_vl")
    text = dict(architecture["text"])
    _refuse_square_experts(family, text, "model.backbone.architecture")
    theta, section = text.pop("rope_theta"), list(text.pop("mrope_section"))
    rope = {"rope_type": "default", "mrope_section": section, "mrope_interleaved": True}
    if "partial_rotary_factor" in text:
        rope["partial_rotary_factor"] = text.pop("partial_rotary_factor")
    if major_version() >= 5:
        text["rope_parameters"] = {**rope, "rope_theta": theta}
    else:
        # Only 4.57 reads from the text's configuration whether embeddings are tied; its default is that they are not.
        tied = bool(architecture["tie_word_embeddings"])
        text |= {"rope_theta": theta, "rope_scaling": rope, "tie_word_embeddings": tied}
    vision = {
        key: list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
        for key, value in architecture["vision"].items()
    }
    config: PretrainedConfig = family.config_class()(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=bool(architecture["tie_word_embeddings"]),
        attn_implementation=attention,
    )
    return config


def _refuse_square_experts(family: Family, text: Mapping[str, Any], where: str) -> None:
    """Files hold experts in either order of the sides, which only their lengths tell apart (transformers, too)."""
    if family.transposed and text["hidden_size"] in (text["moe_intermediate_size"], 2 * text["moe_intermediate_size"]):
        raise ValueError(
            f"{where}: text.moe_intermediate_size {text['moe_intermediate_size']} makes square "
            f"weights of experts where hidden_size is {text['hidden_size']}, and files of {family.name} hold either "
            "order of their sides: choose another size"
        )


def set_token_ids(config: PretrainedConfig, processor: Qwen3VLProcessor) -> None:
    """Set the configuration's ids of media tokens to the processor's."""
    ids = processor.tokenizer.convert_tokens_to_ids
    config.image_token_id = ids("<|image_pad|>")
    config.video_token_id = ids("<|video_pad|>")
    config.vision_start_token_id = ids("<|vision_start|>")
    config.vision_end_token_id = ids("<|vision_end|>")


def embedding_rows(rows: int, tokens: int) -> int:
    """Rows of an embedding of `tokens` tokens where the architecture has `rows`.

    Spare rows are used first; more are added only when they run out. Multiples of 64 keep the matrix product on fast
    kernels and the rows divisible by tensor-parallel ranks.
    """
    return rows if tokens <= rows else -(-tokens // 64) * 64
