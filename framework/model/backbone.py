"""Qwen3-VL as a component: pretrained by name or folder, or random of the same architecture with the tokenizer
shipped here.

Both know their architecture's numbers, so that a plan needs neither weights nor a hub. `transformers` is imported
when a method needs it: it takes seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from framework.model.attention import attention_kernels

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

    def build(self, processor: Qwen3VLProcessor | None) -> Qwen3VLForConditionalGeneration:
        """The network, with an embedding for each token of `processor` (None: as many as the architecture has)."""
        ...


class RandomBackbone:
    """A Qwen3-VL with random weights.

    `architecture` holds `text` and `vision`, the arguments of the configuration classes of `transformers`
    (`rope_theta` and `mrope_section` among the text's), and `tie_word_embeddings`. `processor_folder` defaults to the
    one shipped here. `max_pixels` caps an image's size (a merged token covers 32 x 32 pixels; None: the processor's
    own limit). `attention` is the implementation (see `attention_kernels`).
    """

    def __init__(
        self,
        architecture: Mapping[str, Any],
        processor_folder: str | None = None,
        max_pixels: int | None = None,
        attention: str = "sdpa",
    ) -> None:
        self.architecture = architecture
        self.processor_folder = processor_folder
        self.max_pixels = max_pixels
        self.attention = attention

    @property
    def hidden(self) -> int:
        """Width of the language model's embeddings."""
        return int(self.architecture["text"]["hidden_size"])

    def processor(self, tokens: Sequence[str] = ()) -> Qwen3VLProcessor:
        """The processor of the folder with the extra special tokens."""
        processor = load_processor(self.processor_folder or TINY_PROCESSOR)
        return extend_processor(processor, tokens, self.max_pixels)

    def config(self) -> Qwen3VLConfig:
        """The configuration that `architecture` spells; token ids are those of the released checkpoints until
        `build`.
        """
        return make_config(self.architecture, attention_kernels(self.attention))

    def build(self, processor: Qwen3VLProcessor | None) -> Qwen3VLForConditionalGeneration:
        """A network in float32, drawn from torch's global generator on torch's default device (`meta` included)."""
        from transformers import Qwen3VLForConditionalGeneration

        config = self.config()
        if processor is not None:
            name_tokens(config, processor)
        backbone = Qwen3VLForConditionalGeneration(config)
        if processor is not None:
            fit_vocabulary(backbone, len(processor.tokenizer), known=None)
        return backbone


class PretrainedBackbone:
    """A released or fine-tuned Qwen3-VL, by hub name or folder.

    `architecture` is what `RandomBackbone` takes: the plan uses it, and `build` refuses weights that contradict it.
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
        self.name = name
        self.architecture = architecture
        self.revision = revision
        self.dtype = dtype
        self.max_pixels = max_pixels
        self.attention = attention

    @property
    def hidden(self) -> int:
        """Width of the language model's embeddings."""
        return int(self.architecture["text"]["hidden_size"])

    def processor(self, tokens: Sequence[str] = ()) -> Qwen3VLProcessor:
        """The checkpoint's own processor with the extra special tokens."""
        return extend_processor(load_processor(self.name, self.revision), tokens, self.max_pixels)

    def config(self) -> Qwen3VLConfig:
        """The configuration that `architecture` spells."""
        return make_config(self.architecture, attention_kernels(self.attention))

    def build(self, processor: Qwen3VLProcessor | None) -> Qwen3VLForConditionalGeneration:
        """The pretrained network; on the `meta` device its skeleton, without reading anything.

        Raises `ValueError` when the checkpoint's numbers are not those of `architecture`.
        """
        from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

        if torch.get_default_device().type == "meta":
            return Qwen3VLForConditionalGeneration(self.config())
        self._compare(Qwen3VLConfig.from_pretrained(self.name, revision=self.revision))
        backbone = Qwen3VLForConditionalGeneration.from_pretrained(
            self.name,
            revision=self.revision,
            dtype=getattr(torch, self.dtype),
            attn_implementation=attention_kernels(self.attention),
        )
        if processor is not None:
            known = len(load_processor(self.name, self.revision).tokenizer)
            name_tokens(backbone.config, processor)
            fit_vocabulary(backbone, len(processor.tokenizer), known)
        return backbone

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


def fit_vocabulary(backbone: Any, tokens: int, known: int | None) -> None:
    """Make room for `tokens` tokens: the embedding's spare rows first, more rows only when they run out.

    Rows from `known` on (None: no token was ever trained) get the mean of the known rows, so that a new token starts
    as an average word and not as noise of another scale.
    """
    rows = backbone.get_input_embeddings().weight.shape[0]
    if tokens > rows:
        # Multiples of 64 keep the matrix product on fast kernels and divisible over tensor-parallel ranks.
        backbone.resize_token_embeddings(tokens, pad_to_multiple_of=64, mean_resizing=False)
    if known is None or known >= tokens:
        return
    with torch.no_grad():
        for layer in {backbone.get_input_embeddings(), backbone.get_output_embeddings()}:
            layer.weight[known:] = layer.weight[:known].float().mean(dim=0).to(layer.weight.dtype)
