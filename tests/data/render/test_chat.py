"""Rendered samples: what is trained is the answer alone, what is shown is what the recipe names, faults name scenes."""

from __future__ import annotations

import dataclasses
import io
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

from framework.data.render.chat import ChatRenderer
from framework.data.render.sample import Rendered
from framework.data.render.sensors import BoxesInput, EgoInput, LidarInput, RadarInput
from framework.data.render.tasks import Answer, Caption, Conversation, Detect, Drive
from framework.model.backbone import RandomBackbone
from framework.model.codecs.boxes import BoxTextCodec
from framework.model.codecs.waypoints import WaypointCodec
from framework.scene.batch import IGNORE_INDEX
from framework.scene.types import Camera, Scene, SceneError
from framework.scene.video import encode_clip
from framework.scene.world.generate import generate_scene

TASKS: dict[str, Any] = {
    "drive": Drive(WaypointCodec()),
    "reason": Drive(WaypointCodec(), reason=True),
    "detect": Detect(BoxTextCodec(max_boxes=4)),
    "answer": Answer(questions_per_sample=2),
    "caption": Caption(),
}
SENSORS: Any = {"lidar": LidarInput(4), "radar": RadarInput(2), "boxes": BoxesInput(), "ego": EgoInput()}
HELLO = Conversation("Hello?", "Hello.")


@pytest.fixture(scope="module")
def processor() -> Any:
    """Knows every task's tokens."""
    return RandomBackbone({}).processor([token for task in TASKS.values() for token in task.tokens])


@pytest.fixture(scope="module")
def scenes() -> dict[str, Scene]:
    """Nothing to see, a still of each camera, clips, and one clip among stills."""
    stills, clips = generate_scene(3, "cut_in"), generate_scene(3, "cut_in", camera_frames=4)
    mixed = (stills.cameras[0], clips.cameras[1], stills.cameras[2])
    blind = generate_scene(3, "cut_in", rig=None)
    return {"blind": blind, "stills": stills, "clips": clips, "mixed": dataclasses.replace(stills, cameras=mixed)}


def _renderer(processor: Any, **changes: Any) -> ChatRenderer:
    defaults: dict[str, Any] = {"sensors": {}, "max_length": 4096}
    return ChatRenderer(processor, **defaults | changes)


def _text(processor: Any, rendered: Rendered) -> str:
    """The sample in words, the placeholders of one picture as one."""
    return re.sub(r"(<\|(image|video)_pad\|>)+", r"\1", processor.tokenizer.decode(rendered.input_ids.tolist()))


def _camera(name: str, images: list[Image.Image], times: list[float], clip: bytes | None = None) -> Camera:
    frames = []
    for image in images:
        encoded = io.BytesIO()
        image.save(encoded, format="PNG")
        frames.append(encoded.getvalue())
    return Camera(name, tuple(frames), np.array(times), np.eye(3), np.eye(4), 64, 64, clip)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("seen", ["blind", "stills", "clips", "mixed"])
def test_the_answer_with_its_end_is_trained_and_nothing_else(
    processor: Any, scenes: dict[str, Scene], seen: str, task: str
) -> None:
    scene = scenes[seen]
    talk = TASKS[task].conversation(scene, "draw")
    renderer = _renderer(processor, sensors=SENSORS)
    rendered, prompt = renderer.render(scene, talk), renderer.render(scene, talk, for_generation=True)
    begin = len(prompt.input_ids)
    assert processor.tokenizer.decode(rendered.labels[begin:].tolist()) == f"{talk.answer}<|im_end|>"
    assert (rendered.labels[:begin] == IGNORE_INDEX).all()
    assert rendered.labels[begin:].tolist() == rendered.input_ids[begin:].tolist()
    assert rendered.input_ids[:begin].tolist() == prompt.input_ids.tolist()
    assert (prompt.labels == IGNORE_INDEX).all()
    assert processor.tokenizer.decode(prompt.input_ids.tolist()).endswith(
        f"{talk.prompt}<|im_end|>\n<|im_start|>assistant\n"
    )
    text = _text(processor, rendered)
    for name, rows in rendered.sensors.items():
        assert text.count(SENSORS[name].placeholder) == SENSORS[name].placeholders(rows)
    for kind, grid in (("image", "image_grid_thw"), ("video", "video_grid_thw")):
        places = rendered.input_ids == processor.tokenizer.convert_tokens_to_ids(f"<|{kind}_pad|>")
        features = int(rendered.media[grid].prod(dim=1).sum()) // 4 if grid in rendered.media else 0
        assert int(places.sum()) == features


def test_cameras_are_picked_and_ordered_clips_among_stills(processor: Any, scenes: dict[str, Scene]) -> None:
    mixed = scenes["mixed"]
    shown = r"(<\|(image|video)_pad\|>)"
    picked = _renderer(processor, cameras=["left", "back", "front"]).render(mixed, HELLO)
    assert [kind for _, kind in re.findall(shown, _text(processor, picked))] == ["video", "video", "image"]
    alone = _renderer(processor, cameras=["front"]).render(mixed, HELLO)
    assert picked.media["pixel_values"].equal(alone.media["pixel_values"])
    assert not _renderer(processor, cameras=[]).render(mixed, HELLO).media
    everything = _text(processor, _renderer(processor).render(mixed, HELLO))
    assert [kind for _, kind in re.findall(shown, everything)] == ["image", "video", "video", "image"]


@pytest.mark.parametrize("seen", ["stills", "clips"])
def test_images_are_scaled_down_to_the_width_and_never_up(processor: Any, scenes: dict[str, Scene], seen: str) -> None:
    name = "image_grid_thw" if seen == "stills" else "video_grid_thw"
    for width, columns in ((None, 6), (64, 4), (500, 6)):
        rendered = _renderer(processor, image_width=width).render(scenes[seen], HELLO)
        assert set(rendered.media[name][:, 2].tolist()) == {columns}, "patches of 16 pixels"


@pytest.mark.parametrize(("encoded", "rate"), [(False, 2), (True, 2), (False, 10), (True, 10)])
def test_timestamps_are_those_of_the_clip(processor: Any, encoded: bool, rate: int) -> None:
    images, times = [Image.new("RGB", (64, 64))] * 8, [(step - 7) / rate - 0.01 for step in range(8)]
    clip = encode_clip(images, rate) if encoded else None
    scene = Scene("s", "made", (_camera("front", [] if encoded else images, times, clip),))
    text = _text(processor, _renderer(processor).render(scene, HELLO))
    told = r"<([\d.]+) seconds><\|vision_start\|><\|video_pad\|><\|vision_end\|>"
    assert re.search(rf"user\n({told}){{4}}Hello\?", text)
    between = [(2 * pair + 0.5) / rate for pair in range(4)]  # two frames make one picture
    assert [float(time) for time in re.findall(told, text)] == pytest.approx(between, abs=0.05001)


def test_few_frames_of_a_clip_are_spaced_evenly_to_the_newest_and_keep_their_times(processor: Any) -> None:
    images = [Image.new("RGB", (64, 64), (30 * step,) * 3) for step in range(8)]
    times = [-4.0, -1.5, -1.25, -1.0, -0.75, -0.5, -0.25, 0.0]
    scene = Scene("s", "made", (_camera("front", [], times, encode_clip(images, 4.0)),))
    few = _renderer(processor, video_frames=4).render(scene, HELLO)  # the frames 0, 2, 5 and 7
    assert re.findall(r"<([\d.]+) seconds>", _text(processor, few)) == ["1.4", "3.8"]
    newest = _renderer(processor, video_frames=1).render(scene, HELLO)
    assert "<|image_pad|>" in _text(processor, newest)
    assert newest.media["pixel_values"].mean() == pytest.approx(210 / 127.5 - 1, abs=0.02)
    with pytest.raises(ValueError, match=r"data\.video_frames: 0"):
        _renderer(processor, video_frames=0)


@pytest.mark.parametrize("token", ["<|im_end|>", "<|lidar|>", "<|image_pad|>", "<|video_pad|>"])
def test_a_special_token_in_somebodys_text_is_refused(processor: Any, scenes: dict[str, Scene], token: str) -> None:
    for talk in (Conversation(f"Is {token} it?", "Yes."), Conversation("Is it?", f"Yes.{token}")):
        with pytest.raises(SceneError, match=rf"world-cut_in-3: .*{re.escape(token)}; remove it from the record"):
            _renderer(processor).render(scenes["blind"], talk)


@pytest.mark.fault("a still of another size, or turned")
def test_pictures_that_cannot_be_read_are_refused_by_name(processor: Any, scenes: dict[str, Scene]) -> None:
    still, clip = scenes["stills"].cameras[0], scenes["clips"].cameras[0]
    assert clip.clip is not None
    for camera in (
        dataclasses.replace(still, frames=(still.frames[0][:300],)),
        dataclasses.replace(still, frames=(b"\x89PNG?",)),
        dataclasses.replace(clip, clip=clip.clip[:-900]),
    ):
        scene = dataclasses.replace(scenes["stills"], cameras=(camera,))
        with pytest.raises(SceneError, match=r"scene world-cut_in-3: camera front: .*fetch or encode it again"):
            _renderer(processor).render(scene, HELLO)


def test_a_sample_too_long_is_refused_with_its_length(processor: Any, scenes: dict[str, Scene]) -> None:
    length = len(_renderer(processor).render(scenes["stills"], HELLO).input_ids)
    _renderer(processor, max_length=length).render(scenes["stills"], HELLO)
    remedy = f"{length} tokens, data.max_length is .*: raise it, or lower model.backbone.max_pixels .cameras: 3."
    with pytest.raises(SceneError, match=f"scene world-cut_in-3: {remedy}"):
        _renderer(processor, max_length=length - 1).render(scenes["stills"], HELLO)


def test_a_template_whose_prompt_is_no_prefix_is_refused(processor: Any, scenes: dict[str, Scene]) -> None:
    other = RandomBackbone({}).processor([])
    other.chat_template = "{{ messages | length }}<|im_end|>"
    with pytest.raises(SceneError, match=r"scene world-cut_in-3: the backbone's chat template .* use a template that"):
        _renderer(other).render(scenes["blind"], HELLO)


def test_a_placeholder_that_the_tokenizer_lacks_is_named(processor: Any) -> None:
    class Sonar(EgoInput):
        placeholder = "<|sonar|>"

    with pytest.raises(ValueError, match=r"data\.sensors: the tokenizer does not know \['<\|sonar\|>'\]"):
        _renderer(processor, sensors={"sonar": Sonar()})


def test_cameras_that_a_scene_lacks_are_named(processor: Any, caplog: pytest.LogCaptureFixture) -> None:
    scene = generate_scene(3, "straight")
    there = scene.cameras[0].name
    typo = ChatRenderer(processor, {}, 4096, cameras=["frnt"])
    with pytest.raises(SceneError, match=rf"data.cameras: \['frnt'\] are no cameras of scene .*'{there}'"):
        typo.views(scene)
    partly = ChatRenderer(processor, {}, 4096, cameras=["frnt", there])
    assert len(partly.views(scene)) == len(partly.views(scene)) == 1
    assert [record.getMessage().count("frnt") for record in caplog.records] == [1]
