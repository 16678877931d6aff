"""The processor of a backbone: its tokenizer with the special tokens of sensors, and the sizes of its images.

All families have Qwen3-VL's processor. Functions import `transformers` when they need it, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import Qwen3VLProcessor

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

RELEASED_PIXELS = {"image_processor": (1 << 16, 1 << 24), "video_processor": (1 << 12, 25165824)}
"""The fewest and most pixels of an image and of a clip, in the preprocessor_config.json and
video_preprocessor_config.json of the released Qwen3-VL."""


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
