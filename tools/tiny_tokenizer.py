"""Rebuild the small tokenizer and processor that the repository ships: `python -m tools.tiny_tokenizer`.

A byte-level BPE trained on sentences such as this project's prompts and answers. Special tokens are those of
Qwen3-VL, so that the tiny backbone and a pretrained one read the same conversations. The training text is spelled out
below and nothing is random: the same release of `tokenizers` writes the same files.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

FOLDER = Path(__file__).resolve().parent.parent / "framework" / "model" / "tiny"
MERGES = 1100

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
PLAIN_TOKENS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
"""Single tokens that are part of the text, kept when special tokens are skipped."""

# Words with their leading space, every digit alone (numbers are then spelled alike whatever their length), punctuation
# in runs.
WORDS = Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+")

CHAT_TEMPLATE = """\
{%- macro render(content) -%}
{%- if content is string -%}
{{ content }}
{%- else -%}
{%- for item in content -%}
{%- if item.type == 'image' -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif item.type == 'video' -%}
<|vision_start|><|video_pad|><|vision_end|>
{%- elif item.type == 'text' -%}
{{ item.text }}
{%- else -%}
{{ raise_exception('content items are text, image or video, not ' ~ item.type) }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{{ '<|im_start|>' ~ message.role ~ '\\n' ~ render(message.content) ~ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""

OBJECTS = (
    "car",
    "truck",
    "bus",
    "trailer",
    "construction_vehicle",
    "construction vehicle",
    "pedestrian",
    "motorcycle",
    "bicycle",
    "traffic_cone",
    "traffic cone",
    "barrier",
    "animal",
    "debris",
    "hose",
    "flagger",
    "vehicle",
    "cyclist",
    "worker",
)
PLACES = (
    "ahead",
    "behind",
    "on the left",
    "on the right",
    "in the ego lane",
    "in the left lane",
    "in the right lane",
    "at the intersection",
    "near the crossing",
    "beside the road",
)
STATES = (
    "is parked",
    "is braking",
    "is turning left",
    "is turning right",
    "is crossing the road",
    "is waiting",
    "is blocking the lane",
    "is cutting in",
    "is oncoming",
    "has stopped",
    "is moving slowly",
    "is accelerating",
)
MANOEUVRES = (
    "keep the lane and the speed",
    "slow down gently",
    "brake hard and stop",
    "stop and wait",
    "follow the lead vehicle at a safe distance",
    "turn left at the intersection",
    "turn right at the intersection",
    "go straight through the intersection",
    "change to the left lane",
    "change to the right lane",
    "pass the obstacle on the left",
    "yield to the pedestrian",
    "accelerate to the speed limit",
    "follow the curve to the left",
    "follow the curve to the right",
)
INSTRUCTIONS = (
    "You are the driver of the ego vehicle.",
    "The ego frame has x forward, y left and z up, in metres, with the origin at the rear axle.",
    "Drive for the next 5 seconds. Command: follow. Command: left. Command: right. Command: straight.",
    "Answer with the future trajectory as waypoints (x,y) in metres in the ego frame, 4 per second.",
    "Answer with one acceleration token and one curvature token for each step.",
    "List all objects, nearest first, one per line: label x y z length width height yaw vx vy; "
    "write none when there are none.",
    "Detect every object in the scene and answer with boxes in JSON.",
    '[{"bbox_3d": [x_center, y_center, z_center, x_size, y_size, z_size, roll, pitch, yaw], "label": "category"}]',
    "Describe the scene. Describe what is happening and what should be done next.",
    "First think about what matters, then act.",
    "Camera front, camera front left, camera front right, camera back. LiDAR, radar, boxes from perception, "
    "history of the ego motion.",
)


def corpus() -> Iterator[str]:
    """The training text: driving sentences, questions with answers, the box forms and waypoints."""
    yield from INSTRUCTIONS * 20
    for (i, thing), place, (j, state) in itertools.product(enumerate(OBJECTS), PLACES, enumerate(STATES)):
        distance, speed = (7 * i + 3 * j) % 60, (5 * i + j) % 20
        yield f"A {thing} {place} {state}."
        yield f"There is a {thing} {distance} m {place}, it {state} at {speed}.{j % 10} m/s."
        yield f"How many {thing}s are {place}? There are {i % 5}."
        yield f"What is the {thing} {place} doing? It {state}."
        yield f"How far is the nearest {thing}? {distance} metres. Is there a {thing} {place}? yes no Yes. No."
        yield f"{thing} {distance}.{j} -{i % 9}.{j} 0.{i % 10} 4.6 1.9 1.6 -1.{j} {speed}.0 0.0\n"
        yield f'[{{"bbox_3d": [{i}.1, -{j}.2, {distance}.0, 4.6, 1.6, 1.9, 0.0, 0.0, 1.{j}], "label": "{thing}"}}, '
        yield f"({distance}.{j},-0.{i % 10}) ({distance + 1}.0,{j % 4}.{i % 10}) "
    for manoeuvre, thing, place in itertools.product(MANOEUVRES, OBJECTS, PLACES):
        yield f"The {thing} {place} means that I should {manoeuvre}, because it is safe."
        yield f"What should the ego vehicle do next? {manoeuvre[0].upper()}{manoeuvre[1:]}."
        yield f"The road is clear and dry, so I {manoeuvre}. The route goes on."


def train() -> Tokenizer:
    """The tokenizer: 256 bytes, at most `MERGES` merges, then the special tokens at the end, as in Qwen's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(WORDS, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + MERGES,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
        min_frequency=2,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in PLAIN_TOKENS])
    return tokenizer


def processor_settings(image_class: str) -> dict[str, object]:
    """Qwen3-VL's patch geometry at a fraction of its resolution: at most 32 tokens for an image."""
    return {
        "image_processor_type": image_class,
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "size": {"shortest_edge": 32 * 32, "longest_edge": 32 * 32 * 32},
    }


def main() -> None:
    """Write every file of the folder."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    tokenizer = train()
    (FOLDER / "tokenizer.json").write_text(tokenizer.to_str(pretty=False) + "\n", encoding="utf-8")
    settings: dict[str, dict[str, object]] = {
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "bos_token": None,
            "unk_token": None,
            "additional_special_tokens": [*SPECIAL_TOKENS[3:], "<|im_start|>"],
            "clean_up_tokenization_spaces": False,
            "model_max_length": 32768,
        },
        "preprocessor_config.json": processor_settings("Qwen2VLImageProcessorFast"),
        "video_preprocessor_config.json": {
            key: value for key, value in processor_settings("").items() if key != "image_processor_type"
        }
        | {
            "video_processor_type": "Qwen3VLVideoProcessor",
            "size": {"shortest_edge": 32 * 32, "longest_edge": 8 * 32 * 32 * 32},
            "cap_pixels_per_frame": True,
        },
    }
    for name, value in settings.items():
        (FOLDER / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    (FOLDER / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    print(f"{FOLDER}: {tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
