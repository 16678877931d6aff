"""Qwen3-VL as a component: pretrained by name or folder, or random of the same architecture with the tokenizer
shipped here.

Both know their architecture's numbers, so that a plan needs neither weights nor a hub. `transformers` is imported
when a method needs it: it takes seconds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from framework.model.attention import attention_kernels
from framework.model.weights import draw, init_empty_weights, materialize, read

if TYPE_CHECKING:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

TINY_PROCESSOR = Path(__file__).resolve().parent / "tiny"
"""The small tokenizer and processor of the repository, rebuilt by `tools.tiny_tokenizer`."""

SENSOR_TOKENS = ("<|lidar|>", "<|radar|>", "<|box|>", "<|ego|>")
"""The placeholders that every backbone knows, in this order, whichever encoders a recipe has: their ids never move."""


class Backbone(Protocol):
    """What the assembly needs of a vision-language model."""

    @property
    def hidden(self) -> int:
        """Width of the language model's embeddings."""
        ...

    def processor(self, tokens: Sequence[str] = ()) -> Qwen3VLProcessor:
        """The backbone's processor, knowing `SENSOR_TOKENS` and then `tokens` as special tokens."""
        ...

    def config(self) -> Qwen3VLConfig:
        """The architecture without weights and without a hub."""
        ...

    def skeleton(self, processor: Qwen3VLProcessor | None) -> Qwen3VLForConditionalGeneration:
        """The network without data in its parameters, with an embedding for each token of `processor` (None: as many as
        the architecture has).
        """
        ...

    def init_weights(self, network: Qwen3VLForConditionalGeneration, processor: Qwen3VLProcessor | None) -> None:
        """Give this rank's share of a skeleton's parameters, which has been allocated, its values."""
        ...


class Qwen3VL(ABC):
    """What random and pretrained backbones have in common.

    `architecture` holds `text` and `vision`, the arguments of the configuration classes of `transformers`
    (`rope_theta` and `mrope_section` among the text's), and `tie_word_embeddings`. `max_pixels` caps an image's size (a
    merged token covers 32 x 32 pixels; None: the processor's own limit). `attention` is the implementation (see
    `attention_kernels`).
    """

    dtype = "float32"

    def __init__(self, architecture: Mapping[str, Any], max_pixels: int | None, attention: str) -> None:
        self.architecture = architecture
        self.max_pixels = max_pixels
        self.attention = attention

    @property
    def hidden(self) -> int:
        """Width of the language model's embeddings."""
        return int(self.architecture["text"]["hidden_size"])

    def config(self) -> Qwen3VLConfig:
        """The configuration that `architecture` spells; token ids are those of the released checkpoints."""
        return make_config(self.architecture, attention_kernels(self.attention))

    def skeleton(self, processor: Qwen3VLProcessor | None) -> Qwen3VLForConditionalGeneration:
        """See `Backbone`."""
        from transformers import Qwen3VLForConditionalGeneration

        config = self._configured()
        if processor is not None:
            name_tokens(config, processor)
            config.text_config.vocab_size = embedding_rows(config.text_config.vocab_size, len(processor.tokenizer))
        with init_empty_weights():
            network = Qwen3VLForConditionalGeneration(config)
        for parameter in network.parameters():
            parameter.data = parameter.data.to(getattr(torch, self.dtype))
        return network

    def build(self, processor: Qwen3VLProcessor | None) -> Qwen3VLForConditionalGeneration:
        """The whole network on torch's default device; on `meta` its skeleton, without reading anything."""
        network = self.skeleton(processor)
        if torch.get_default_device().type != "meta":
            materialize(network, torch.get_default_device())
            network.tie_weights()
            self.init_weights(network, processor)
        return network

    @abstractmethod
    def init_weights(self, network: Qwen3VLForConditionalGeneration, processor: Qwen3VLProcessor | None) -> None:
        """See `Backbone`."""

    def _configured(self) -> Qwen3VLConfig:
        return self.config()


class RandomBackbone(Qwen3VL):
    """A Qwen3-VL with random weights in float32, drawn from torch's seed. For the architecture see `Qwen3VL`;
    `processor_folder` defaults to the one shipped here.
    """

    def __init__(
        self,
        architecture: Mapping[str, Any],
        processor_folder: str | None = None,
        max_pixels: int | None = None,
        attention: str = "sdpa",
    ) -> None:
        super().__init__(architecture, max_pixels, attention)
        self.processor_folder = processor_folder

    def processor(self, tokens: Sequence[str] = ()) -> Qwen3VLProcessor:
        """The processor of the folder with the extra special tokens."""
        processor = load_processor(self.processor_folder or TINY_PROCESSOR)
        return extend_processor(processor, tokens, self.max_pixels)

    def init_weights(self, network: Qwen3VLForConditionalGeneration, processor: Qwen3VLProcessor | None) -> None:
        """Draw the weights as `transformers` does, from torch's initial seed and each module's name."""
        draw(network, torch.initial_seed())


class PretrainedBackbone(Qwen3VL):
    """A released or fine-tuned Qwen3-VL, by hub name or folder.

    `architecture` is what `RandomBackbone` takes: the plan uses it, and weights that contradict it are refused.
    `dtype` is the weights' type in memory (`float32` where the precision plugin casts, `bfloat16` to halve it);
    `revision` pins the hub's commit.
    """

    def __init__(
        self,
        name: str,
        architecture: Mapping[str, Any],
        revision: str | None = None,
        dtype: str = "float32",
        max_pixels: int | None = None,
        attention: str = "sdpa",
    ) -> None:
        super().__init__(architecture, max_pixels, attention)
        self.name = name
        self.revision = revision
        self.dtype = dtype

    def processor(self, tokens: Sequence[str] = ()) -> Qwen3VLProcessor:
        """The checkpoint's own processor with the extra special tokens."""
        return extend_processor(load_processor(self.name, self.revision), tokens, self.max_pixels)

    def init_weights(self, network: Qwen3VLForConditionalGeneration, processor: Qwen3VLProcessor | None) -> None:
        """Read the weights from the checkpoint's files; tokens that it does not know start as the mean of those that it
        does, and not as noise of another scale.
        """
        known = None if processor is None else len(load_processor(self.name, self.revision).tokenizer)
        read(network, self._folder(), known)

    def _folder(self) -> Path:
        if Path(self.name).is_dir():
            return Path(self.name)
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(self.name, revision=self.revision, allow_patterns=["*.safetensors", "*.json"]))

    def _configured(self) -> Qwen3VLConfig:
        """The checkpoint's own configuration. Raises `ValueError` when its numbers are not those of `architecture`."""
        from transformers import Qwen3VLConfig

        if torch.get_default_device().type == "meta":
            return self.config()
        released = Qwen3VLConfig.from_pretrained(
            self.name, revision=self.revision, attn_implementation=attention_kernels(self.attention)
        )
        self._compare(released)
        return released

    def _compare(self, released: Qwen3VLConfig) -> None:
        expected = self.config()
        for part in ("text", "vision"):
            there, here = getattr(released, f"{part}_config"), getattr(expected, f"{part}_config")
            for key in self.architecture[part]:
                if hasattr(here, key) and key not in ("rope_theta", "vocab_size"):
                    ours, theirs = getattr(here, key), getattr(there, key)
                    if (list(ours) if isinstance(ours, tuple) else ours) != theirs:
                        place = f"model.backbone.architecture.{part}.{key}"
                        raise ValueError(
                            f"{self.name}: {part}.{key} is {theirs}, the recipe's {place} says {ours}: "
                            "choose the preset of this checkpoint or correct the number"
                        )


def make_config(architecture: Mapping[str, Any], attention: str) -> Qwen3VLConfig:
    """A `Qwen3VLConfig` of these numbers, for transformers 4.57 (rope_scaling) and 5 (rope_parameters)."""
    import transformers

    text = dict(architecture["text"])
    theta, section = text.pop("rope_theta"), list(text.pop("mrope_section"))
    rope = {"rope_type": "default", "mrope_section": section, "mrope_interleaved": True}
    if major_version() >= 5:
        text["rope_parameters"] = {**rope, "rope_theta": theta}
    else:
        # Only 4.57 asks the text's configuration whether embeddings are tied, and its default is that they are not.
        tied = bool(architecture["tie_word_embeddings"])
        text |= {"rope_theta": theta, "rope_scaling": rope, "tie_word_embeddings": tied}
    vision = {
        key: list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
        for key, value in architecture["vision"].items()
    }
    return transformers.Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=bool(architecture["tie_word_embeddings"]),
        attn_implementation=attention,
    )


def load_processor(folder: str | Path, revision: str | None = None) -> Qwen3VLProcessor:
    """The processor of a folder or hub name; the tokenizer is what its file says, whatever class the folder names."""
    import transformers

    if Path(folder) != TINY_PROCESSOR:
        return transformers.Qwen3VLProcessor.from_pretrained(folder, revision=revision)
    # Release 5's Qwen2Tokenizer would rebuild the word splitting that the file defines; 4.57 insists on the class.
    reader = transformers.PreTrainedTokenizerFast if major_version() >= 5 else transformers.Qwen2TokenizerFast
    return transformers.Qwen3VLProcessor(
        image_processor=transformers.AutoImageProcessor.from_pretrained(folder),
        tokenizer=reader.from_pretrained(folder),
        video_processor=transformers.AutoVideoProcessor.from_pretrained(folder),
        chat_template=(Path(folder) / "chat_template.jinja").read_text(encoding="utf-8"),
    )


def major_version() -> int:
    """The major release of `transformers`."""
    import transformers

    return int(transformers.__version__.split(".")[0])


def extend_processor(processor: Qwen3VLProcessor, tokens: Sequence[str], max_pixels: int | None) -> Qwen3VLProcessor:
    """Add `SENSOR_TOKENS` and `tokens` as special tokens, in order, and cap the images' size."""
    known = set(processor.tokenizer.get_vocab())
    new = [token for token in dict.fromkeys((*SENSOR_TOKENS, *tokens)) if token not in known]
    processor.tokenizer.add_tokens(new, special_tokens=True)
    if max_pixels is not None:
        size = processor.image_processor.size
        floor = size["shortest_edge"] if isinstance(size, dict) else size.shortest_edge
        processor.image_processor.size = {"shortest_edge": min(int(floor), max_pixels), "longest_edge": max_pixels}
    return processor


def name_tokens(config: Qwen3VLConfig, processor: Qwen3VLProcessor) -> None:
    """Tell the configuration which ids the processor's media tokens have."""
    ids = processor.tokenizer.convert_tokens_to_ids
    config.image_token_id = ids("<|image_pad|>")
    config.video_token_id = ids("<|video_pad|>")
    config.vision_start_token_id = ids("<|vision_start|>")
    config.vision_end_token_id = ids("<|vision_end|>")


def embedding_rows(rows: int, tokens: int) -> int:
    """Rows of an embedding of `tokens` tokens, where the architecture has `rows`: its spare rows first, more only when
    they run out. Multiples of 64 keep the matrix product on fast kernels and divisible over tensor-parallel ranks.
    """
    return rows if tokens <= rows else -(-tokens // 64) * 64
