"""Qwen3-VL as a component: pretrained from a hub or folder, or random with the tokenizer of this repository.

Both know the numbers of their architecture, so that `plan` needs neither weights nor a hub. Methods import
`transformers` when they need it, because the import takes seconds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import torch
from annotated_types import Interval

from framework.model.attention import attention_kernels
from framework.model.weights import init_empty_weights, init_random, load_pretrained, materialize
from framework.recipe.component import component

if TYPE_CHECKING:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

TINY_PROCESSOR = Path(__file__).resolve().parent / "tiny"
"""The repository's small tokenizer and processor; `tools.tiny_tokenizer` rebuilds them."""

WHOLE_CLIP = ("<|vision_start|><|video_pad|><|vision_end|>", "<|video_pad|>")
"""What released chat templates write for a clip, and what is kept of it. The processor brackets each frame itself.
Releases of transformers differ in keeping the brackets of the whole clip as well; without them, all give the tokens of
4.57, the release of the checkpoints."""

SENSOR_TOKENS = ("<|lidar|>", "<|radar|>", "<|box|>", "<|ego|>")
"""Placeholders that every backbone has, in this order, whichever encoders a recipe has: their ids never change."""

OPTIONAL_SENSOR_TOKENS = ("<|calibration|>",)
"""Placeholders that only backbones of recipes with that encoder have, after `SENSOR_TOKENS`."""

ImageArea = Annotated[int, Interval(ge=1024, le=1 << 28)]
"""Pixels of an image."""
RELEASED_PIXELS = {"image_processor": (1 << 16, 1 << 24), "video_processor": (1 << 12, 25165824)}
"""The fewest and most pixels of an image and of a clip, in the preprocessor_config.json and
video_preprocessor_config.json of the released Qwen3-VL."""


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

    def config(self) -> Qwen3VLConfig:
        """The architecture's configuration, without access to weights or a hub."""
        ...

    def skeleton(self, processor: Qwen3VLProcessor | None) -> Qwen3VLForConditionalGeneration:
        """The network with parameters on the meta device.

        It has an embedding for each token of `processor`; None: as many as the architecture says.
        """
        ...

    def init_weights(self, network: Qwen3VLForConditionalGeneration, processor: Qwen3VLProcessor | None) -> None:
        """Initialize this rank's shard of a skeleton's parameters, which must be materialized."""
        ...


class Qwen3VL(ABC):
    """The common part of random and pretrained backbones.

    Args:
        architecture: `text` and `vision`, the arguments of the configuration classes of `transformers` (the text's
            include `rope_theta` and `mrope_section`), and `tie_word_embeddings`.
        max_pixels: Cap on an image's size, in pixels; a merged token covers 32 x 32. None: the processor's own limit.
        attention: The attention implementation (see `attention_kernels`).
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
        """The configuration of `architecture`; token ids are those of the released checkpoints."""
        return make_config(self.architecture, attention_kernels(self.attention))

    def skeleton(self, processor: Qwen3VLProcessor | None) -> Qwen3VLForConditionalGeneration:
        """See `Backbone`."""
        from transformers import Qwen3VLForConditionalGeneration

        config = self._configured()
        if processor is not None:
            set_token_ids(config, processor)
            config.text_config.vocab_size = embedding_rows(config.text_config.vocab_size, len(processor.tokenizer))
        with init_empty_weights():
            network = Qwen3VLForConditionalGeneration(config)
        for parameter in network.parameters():
            parameter.data = parameter.data.to(getattr(torch, self.dtype))
        return network

    def build(self, processor: Qwen3VLProcessor | None) -> Qwen3VLForConditionalGeneration:
        """The unsharded, initialized network on torch's default device; on `meta` its skeleton, and nothing is read."""
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


@component
class RandomBackbone(Qwen3VL):
    """A Qwen3-VL with random float32 weights, drawn from torch's seed.

    Args:
        architecture: See `Qwen3VL`.
        processor_folder: Folder of the processor and tokenizer. None: the repository's own.
        max_pixels: See `Qwen3VL`.
        attention: See `attention_kernels`.
    """

    def __init__(
        self,
        architecture: Mapping[str, Any],
        processor_folder: str | None = None,
        max_pixels: ImageArea | None = None,
        attention: str = "sdpa",
    ) -> None:
        super().__init__(architecture, max_pixels, attention)
        self.processor_folder = processor_folder

    def processor(self, tokens: Sequence[str] = ()) -> Qwen3VLProcessor:
        """The folder's processor with the extra special tokens."""
        processor = load_processor(self.processor_folder or TINY_PROCESSOR)
        return extend_processor(processor, tokens, self.max_pixels)

    def offline_processor(self, tokens: Sequence[str] = ()) -> Qwen3VLProcessor:
        """See `Backbone`: the folder's."""
        return self.processor(tokens)

    def init_weights(self, network: Qwen3VLForConditionalGeneration, processor: Qwen3VLProcessor | None) -> None:
        """Draw the weights as `transformers` does, from torch's initial seed and each module's name."""
        init_random(network, torch.initial_seed())


@component
class PretrainedBackbone(Qwen3VL):
    """A released or fine-tuned Qwen3-VL.

    Args:
        name: Hub name or folder of the checkpoint.
        architecture: See `Qwen3VL`. `plan` uses it; a checkpoint that contradicts it is refused.
        revision: Commit of the hub's repository. None: its newest.
        dtype: Type of the weights in memory: `float32` where the precision plugin casts, `bfloat16` for half the
            memory.
        max_pixels: See `Qwen3VL`.
        attention: See `attention_kernels`.
    """

    def __init__(
        self,
        name: str,
        architecture: Mapping[str, Any],
        revision: str | None = None,
        dtype: str = "float32",
        max_pixels: ImageArea | None = None,
        attention: str = "sdpa",
    ) -> None:
        super().__init__(architecture, max_pixels, attention)
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

    def init_weights(self, network: Qwen3VLForConditionalGeneration, processor: Qwen3VLProcessor | None) -> None:
        """Load the weights from the checkpoint's files.

        Embeddings of tokens that it does not have start as the mean of the others, not as noise of another scale.
        """
        known = None if processor is None else len(load_processor(self.name, self.revision).tokenizer)
        load_pretrained(network, self._folder(), known)

    def _folder(self) -> Path:
        if Path(self.name).is_dir():
            return Path(self.name)
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(self.name, revision=self.revision, allow_patterns=["*.safetensors", "*.json"]))

    def _configured(self) -> Qwen3VLConfig:
        """The checkpoint's own configuration. Raises `ValueError` when it contradicts `architecture`."""
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


def make_config(architecture: Mapping[str, Any], attention: str) -> Qwen3VLConfig:
    """A `Qwen3VLConfig` of `architecture`, for transformers 4.57 (rope_scaling) and 5 (rope_parameters)."""
    import transformers

    text = dict(architecture["text"])
    theta, section = text.pop("rope_theta"), list(text.pop("mrope_section"))
    rope = {"rope_type": "default", "mrope_section": section, "mrope_interleaved": True}
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
    return transformers.Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=bool(architecture["tie_word_embeddings"]),
        attn_implementation=attention,
    )


def load_processor(folder: str | Path, revision: str | None = None) -> Qwen3VLProcessor:
    """The processor of a folder or hub name; the tokenizer follows its file, whichever class the folder names."""
    import transformers

    if Path(folder) != TINY_PROCESSOR:
        return transformers.Qwen3VLProcessor.from_pretrained(folder, revision=revision)
    # Release 5's Qwen2Tokenizer would replace the word splitting that the file defines; 4.57 requires the class.
    reader = transformers.PreTrainedTokenizerFast if major_version() >= 5 else transformers.Qwen2TokenizerFast
    return transformers.Qwen3VLProcessor(
        image_processor=transformers.AutoImageProcessor.from_pretrained(folder),
        tokenizer=reader.from_pretrained(folder),
        video_processor=transformers.AutoVideoProcessor.from_pretrained(folder),
        chat_template=(Path(folder) / "chat_template.jinja").read_text(encoding="utf-8"),
    )


def released_limits(processor: Qwen3VLProcessor) -> Qwen3VLProcessor:
    """`processor` with the sizes of images and clips of the released checkpoints (`RELEASED_PIXELS`)."""
    patches = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2}
    for kind, (least, most) in RELEASED_PIXELS.items():
        size = {"shortest_edge": least, "longest_edge": most}
        setattr(processor, kind, type(getattr(processor, kind))(**patches, size=size))
    return processor


def major_version() -> int:
    """The major release of `transformers`."""
    import transformers

    return int(transformers.__version__.split(".")[0])


def extend_processor(processor: Qwen3VLProcessor, tokens: Sequence[str], max_pixels: int | None) -> Qwen3VLProcessor:
    """Add `SENSOR_TOKENS` and `tokens` as special tokens, in order, cap the images' size, and let the chat template
    write a clip as `WHOLE_CLIP` says, so that an exported processor renders it as training does.
    """
    if isinstance(processor.chat_template, str):
        processor.chat_template = processor.chat_template.replace(*WHOLE_CLIP)
    known = set(processor.tokenizer.get_vocab())
    new = [token for token in dict.fromkeys((*SENSOR_TOKENS, *tokens)) if token not in known]
    processor.tokenizer.add_tokens(new, special_tokens=True)
    if max_pixels is not None:
        size = processor.image_processor.size
        floor = size["shortest_edge"] if isinstance(size, dict) else size.shortest_edge
        processor.image_processor.size = {"shortest_edge": min(int(floor), max_pixels), "longest_edge": max_pixels}
    return processor


def set_token_ids(config: Qwen3VLConfig, processor: Qwen3VLProcessor) -> None:
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
