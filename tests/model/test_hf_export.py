"""Out to plain transformers and back."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

from framework.data.render.chat import ChatRenderer
from framework.data.render.tasks import Conversation
from framework.model.codecs.grammar import BANNED_TOKENS
from framework.model.flow_head import FlowHead
from framework.model.generate import sample
from framework.model.hf_export import FACTS, export
from framework.model.language_action import LanguageActionModel
from framework.scene.types import Camera, Scene
from framework.scene.video import decode_clip, encode_clip
from tests.model.conftest import EVERYTHING, build, make_batch
from tests.model.exports import load_export


def test_reloads_to_identical_logits(model: LanguageActionModel, tmp_path: Path) -> None:
    export(model, tmp_path)
    other = build(seed=1)
    batch = make_batch(model, [EVERYTHING])
    with torch.no_grad():
        logits = model.head(model(batch))
        assert not torch.equal(other.head(other(batch)), logits)
        load_export(tmp_path, other)
        assert torch.equal(other.head(other(batch)), logits)


def test_plain_transformers_loads_the_backbone_and_its_processor(model: LanguageActionModel, tmp_path: Path) -> None:
    export(model, tmp_path)
    plain = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path).eval()
    processor = AutoProcessor.from_pretrained(tmp_path)
    batch = make_batch(model, [("Is a pedestrian ahead?", 2, ())])
    assert processor.tokenizer.decode(batch["input_ids"][0]) == model.processor.tokenizer.decode(batch["input_ids"][0])
    inputs = {key: value for key, value in batch.items() if key not in ("sensors", "attention_mask")}
    with torch.no_grad():
        theirs = plain(**inputs).logits
        torch.testing.assert_close(theirs, model.head(model(batch)), atol=1e-5, rtol=1e-4)


@pytest.mark.fault("an exported model that does not stop")
def test_generation_stops_where_trained_answers_end(model: LanguageActionModel, tmp_path: Path) -> None:
    export(model, tmp_path)
    plain = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path).eval()
    end = AutoProcessor.from_pretrained(tmp_path).tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end in plain.generation_config.eos_token_id
    answer = plain.generate(
        input_ids=torch.tensor([[1, 2, 3]]), max_new_tokens=5, do_sample=False,
        prefix_allowed_tokens_fn=lambda _, ids: [end] if len(ids) > 3 else [5],
    )  # fmt: skip
    assert answer[0, 3:].tolist() == [5, end]


def test_an_action_head_is_refused(tmp_path: Path) -> None:
    model = build()
    model.action_head = FlowHead(hidden=128, width=16, layers=1, heads=2)
    with pytest.raises(ValueError, match="action_head: transformers has no place for it"):
        export(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_another_recipes_encoders_are_refused(model: LanguageActionModel, tmp_path: Path) -> None:
    export(model, tmp_path)
    facts = json.loads((tmp_path / FACTS).read_text())
    (tmp_path / FACTS).write_text(json.dumps({**facts, "encoders": ["sonar"]}))
    with pytest.raises(ValueError, match="sonar"):
        load_export(tmp_path, build())


@pytest.mark.fault("an exported model that does not stop")
def test_plain_transformers_answers_as_we_do_token_by_token(tmp_path: Path) -> None:
    model = build()
    with torch.no_grad():  # stronger layers, or the tied embedding repeats the prompt's last token
        for layer in model.backbone.model.language_model.layers.parameters():
            layer.mul_(8.0 if layer.ndim > 1 else 1.0)
    odd = {"repetition_penalty": 1.3, "num_beams": 3, "no_repeat_ngram_size": 2, "min_new_tokens": 30, "top_k": 20}
    for name, value in odd.items():  # a backbone's own settings of generation are not those of what was trained
        setattr(model.backbone.generation_config, name, value)
    export(model, tmp_path)
    plain = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert plain.generation_config.max_new_tokens > 1000
    tokenizer = AutoProcessor.from_pretrained(tmp_path).tokenizer
    for prompt, pictures in (("Is a pedestrian ahead?", 2), ("Where to?", 0)):
        batch = make_batch(model, [(prompt, pictures, ())])
        (ours,) = sample(model, batch, model.processor.tokenizer, [None], 24)
        inputs = {key: value for key, value in batch.items() if key != "sensors"}
        theirs = plain.generate(**inputs, max_new_tokens=24)[0, batch["input_ids"].shape[1] :]
        assert theirs.tolist() == list(ours.tokens)
        assert len(set(ours.tokens)) > 4, "an answer of one token over and over shows nothing"
        assert not set(tokenizer.convert_tokens_to_ids(list(BANNED_TOKENS))) & set(theirs.tolist())


@pytest.mark.fault("clips in an exported model")
@pytest.mark.parametrize("frames", [1, 4])
def test_the_exported_processor_renders_stills_and_clips_as_training_does(
    model: LanguageActionModel, tmp_path: Path, frames: int
) -> None:
    export(model, tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    images = [Image.effect_noise((64, 64), 90.0).convert("RGB") for _ in range(frames)]
    kind, media = ("image", "images") if frames == 1 else ("video", "videos")
    message = {"role": "user", "content": [{"type": kind}, {"type": "text", "text": "What is ahead?"}]}
    metadata = {"fps": 10, "frames_indices": list(range(frames)), "total_num_frames": frames}
    clip = {"videos_kwargs": {"do_sample_frames": False, "video_metadata": [metadata]}} if frames > 1 else {}
    ids = []
    for each in (model.processor, processor):
        text = each.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        ids.append(each(text=[text], **{media: [images]}, **clip, return_tensors="pt")["input_ids"][0].tolist())
    assert ids[0] == ids[1]
    starts = processor.tokenizer.decode(ids[1]).count("<|vision_start|>")
    assert starts == max(1, frames // 2), "one pair of brackets for each picture, none around the clip"


def _files() -> dict[str, bytes]:
    """Pictures that only look alike where both sides decode and scale them alike."""
    noise = np.random.default_rng(3)
    colours = Image.fromarray(noise.integers(0, 255, (90, 160, 3), dtype=np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    grey16 = noise.integers(0, 1 << 16, (90, 160)).astype(np.uint16)
    made = {
        "wide": (colours, "PNG", {}), "narrow": (colours.resize((40, 32)), "PNG", {}),
        "long": (colours.resize((400, 8)), "PNG", {}), "high": (colours.resize((8, 400)), "PNG", {}),
        "turned": (colours, "JPEG", {"exif": turned}), "grey": (colours.convert("L"), "PNG", {}),
        "alpha": (colours.convert("RGBA"), "PNG", {}), "palette": (colours.quantize(), "PNG", {}),
        "grey 16": (Image.fromarray(grey16), "PNG", {}), "ink": (colours.convert("CMYK"), "JPEG", {}),
    }  # fmt: skip
    files = {}
    for name, (image, form, options) in made.items():
        image.save(file := io.BytesIO(), form, **options)
        files[name] = file.getvalue()
    return files


@pytest.mark.fault("pictures in an exported model")
def test_the_folders_processor_shows_pictures_as_training_does(model: LanguageActionModel, tmp_path: Path) -> None:
    export(model, tmp_path, image_width=48)
    processor = AutoProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    renderer = ChatRenderer(model.processor, {}, 4096, image_width=48)
    asked = Conversation("What is ahead?", "A car.")
    message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": asked.prompt}]}]
    text = [processor.apply_chat_template(message, tokenize=False, add_generation_prompt=True)]
    for name, file in _files().items():
        (tmp_path / "picture").write_bytes(file)
        width, height = Image.open(io.BytesIO(file)).size
        size = (height, width) if name == "turned" else (width, height)
        scene = Scene(name, "made", cameras=(Camera("front", (file,), np.zeros(1), np.eye(3), np.eye(4), *size),))
        ours = renderer.render(scene, asked, for_generation=True)
        for given in (Image.open(io.BytesIO(file)), str(tmp_path / "picture")):
            theirs = processor(text=text, images=[[given]], return_tensors="pt")
            assert torch.equal(theirs["pixel_values"], ours.media["pixel_values"]), name
            assert theirs["input_ids"][0].tolist() == ours.input_ids.tolist(), name


@pytest.mark.fault("clips in an exported model")
@pytest.mark.parametrize("most", [2, 3, 7])
def test_the_folders_processor_shows_as_many_frames_as_training_does(
    model: LanguageActionModel, tmp_path: Path, most: int
) -> None:
    export(model, tmp_path, video_frames=most)
    processor = AutoProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    clip = encode_clip([Image.effect_noise((160, 90), 90.0).convert("RGB") for _ in range(7)], 10.0)
    camera = Camera("front", (), np.arange(-6, 1) / 10, np.eye(3), np.eye(4), 160, 90, clip)
    renderer = ChatRenderer(model.processor, {}, 4096, video_frames=most)
    asked = Conversation("What is ahead?", "A car.")
    ours = renderer.render(Scene("s", "made", cameras=(camera,)), asked, for_generation=True)
    message = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": asked.prompt}]}]
    text = [processor.apply_chat_template(message, tokenize=False, add_generation_prompt=True)]
    metadata = {"fps": 10, "frames_indices": list(range(7)), "total_num_frames": 7}
    how = {"videos_kwargs": {"do_sample_frames": False, "video_metadata": [metadata]}, "return_tensors": "pt"}
    theirs = processor(text=text, videos=[decode_clip(clip)], **how)
    assert theirs["input_ids"][0].tolist() == ours.input_ids.tolist()
    assert torch.equal(theirs["video_grid_thw"], ours.media["video_grid_thw"])
    assert torch.equal(theirs["pixel_values_videos"], ours.media["pixel_values_videos"])
    if most < 7:
        with pytest.raises(ValueError, match=f"a clip of 7 frames, of which {most} are shown; video_metadata"):
            processor(text=text, videos=[decode_clip(clip)], return_tensors="pt")


@pytest.mark.fault("pictures in an exported model")
def test_the_folders_processor_scales_the_frames_of_clips(model: LanguageActionModel, tmp_path: Path) -> None:
    export(model, tmp_path, image_width=48)
    processor = AutoProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    clip = encode_clip([Image.effect_noise((160, 90), 90.0).convert("RGB") for _ in range(4)], 10.0)
    camera = Camera("front", (), np.arange(-3, 1) / 10, np.eye(3), np.eye(4), 160, 90, clip)
    renderer = ChatRenderer(model.processor, {}, 4096, image_width=48)
    asked = Conversation("What is ahead?", "A car.")
    ours = renderer.render(Scene("s", "made", cameras=(camera,)), asked, for_generation=True)
    message = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": asked.prompt}]}]
    text = [processor.apply_chat_template(message, tokenize=False, add_generation_prompt=True)]
    frames = decode_clip(clip)
    metadata = {"fps": 10, "frames_indices": [0, 1, 2, 3], "total_num_frames": 4}
    how = {"videos_kwargs": {"do_sample_frames": False, "video_metadata": [metadata]}, "return_tensors": "pt"}
    for given in (frames, np.stack([np.asarray(frame) for frame in frames])):
        theirs = processor(text=text, videos=[given], **how)
        assert theirs["input_ids"][0].tolist() == ours.input_ids.tolist()
        assert torch.equal(theirs["video_grid_thw"], ours.media["video_grid_thw"])
    with pytest.raises(ValueError, match="videos: cannot scale a str to 48 pixels as training did"):
        processor(text=text, videos=["clip.mp4"], **how)
