"""A conversation as the backbone's own chat template and processor spell it, with labels on the assistant's tokens
alone.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from framework.data.render.collate import MEDIA, SpecialIds
from framework.data.render.sample import Rendered
from framework.data.render.sensors import SensorInput
from framework.data.render.tasks import Conversation
from framework.scene.batch import IGNORE_INDEX
from framework.scene.types import Camera, FloatArray, Scene, SceneError
from framework.scene.video import decode_clip

CLOCK_HZ = 1000
"""Rate of the clock in which the processor is told when a clip's frames are: it takes whole numbers of ticks."""


class Shown(NamedTuple):
    """What is shown of a camera: its images, oldest first, and their times (s)."""

    images: list[Image.Image]
    times: FloatArray

    @property
    def is_clip(self) -> bool:
        """Whether the processor takes it as a video; else it is an image."""
        return len(self.images) > 1

    @property
    def metadata(self) -> dict[str, Any]:
        """When the frames are, for the timestamps of the prompt, which begin with the clip.

        Ticks of a clock rather than numbers of frames: a rate would be wrong where frames were dropped or picked.
        Without it the processor assumes 24 frames a second.
        """
        ticks = np.round((self.times - self.times[0]) * CLOCK_HZ).astype(np.int64).tolist()
        return {"fps": CLOCK_HZ, "frames_indices": ticks, "total_num_frames": ticks[-1] + 1}


class ChatRenderer:
    """Renders scenes by the template and image processor of `processor` (a transformers Qwen3VLProcessor).

    `sensors` maps encoder names to their inputs. `cameras` names the cameras to show, in order (None: all of them);
    images wider than `image_width` pixels are scaled down before the processor sees them. Of a clip at most
    `video_frames` frames are shown (None: all), evenly spaced and the newest among them. Samples longer than
    `max_length` tokens are refused.
    """

    def __init__(
        self,
        processor: Any,
        sensors: Mapping[str, SensorInput],
        max_length: int,
        cameras: Sequence[str] | None = None,
        image_width: int | None = None,
        video_frames: int | None = None,
    ) -> None:
        if video_frames is not None and video_frames < 1:
            raise ValueError(f"data.video_frames: {video_frames}; show at least one frame of a clip")
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.sensors = dict(sensors)
        self.max_length = max_length
        self.cameras = cameras
        self.image_width = image_width
        self.video_frames = video_frames
        self.special = tuple(self.tokenizer.get_added_vocab())
        unknown = [s.placeholder for s in self.sensors.values() if s.placeholder not in self.special]
        if unknown:
            raise ValueError(
                f"data.sensors: the tokenizer does not know {unknown}; add them to model.backbone's special tokens"
            )

    @property
    def special_ids(self) -> SpecialIds:
        """The token ids that collation needs."""
        ids = self.tokenizer.convert_tokens_to_ids
        return SpecialIds(self.tokenizer.pad_token_id, ids("<|image_pad|>"), ids("<|video_pad|>"))

    def render(self, scene: Scene, conversation: Conversation, for_generation: bool = False) -> Rendered:
        """The sample of one exchange; with `for_generation` the prompt alone, up to where the assistant begins to
        speak.

        Raises `SceneError` naming the scene and what is wrong: an unreadable image or clip, a special token in
        somebody's text, too many tokens.
        """
        self._refuse_mischief(scene, conversation)
        rows = {name: found for name, sensor in self.sensors.items() if (found := sensor.rows(scene)) is not None}
        shown = [self._look(scene, camera) for camera in self._chosen(scene)]
        prompt, answer = self._spell(scene, conversation, rows, shown)
        processed = self._process(prompt, shown)
        prompt_ids = processed["input_ids"][0]
        answer_ids = torch.tensor([] if for_generation else self.tokenizer(answer)["input_ids"], dtype=torch.int64)
        input_ids = torch.cat([prompt_ids, answer_ids])
        if len(input_ids) > self.max_length:
            raise SceneError(
                f"scene {scene.id}: {len(input_ids)} tokens, data.max_length is {self.max_length}: raise it"
            )
        labels = torch.cat([torch.full_like(prompt_ids, IGNORE_INDEX), answer_ids])
        media = {name: processed[name] for name in MEDIA if name in processed}
        return Rendered(input_ids, labels, media, rows)

    def _spell(
        self, scene: Scene, conversation: Conversation, rows: dict[str, FloatArray], shown: list[Shown]
    ) -> tuple[str, str]:
        """The prompt and the answer as the template renders them, the answer with its end of turn."""
        placeholders = "".join(
            self.sensors[name].placeholder * self.sensors[name].placeholders(found) for name, found in rows.items()
        )
        media = [{"type": "video" if camera.is_clip else "image"} for camera in shown]
        user = {"role": "user", "content": [*media, {"type": "text", "text": placeholders + conversation.prompt}]}
        assistant = {"role": "assistant", "content": [{"type": "text", "text": conversation.answer}]}
        prompt: str = self.processor.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
        whole: str = self.processor.apply_chat_template([user, assistant], tokenize=False)
        answer = whole.removeprefix(prompt)
        if answer == whole or not answer.startswith(conversation.answer):
            raise SceneError(
                f"scene {scene.id}: the backbone's chat template does not render the prompt as a prefix of the whole "
                "exchange, so that the assistant's tokens cannot be told apart; use a template that does"
            )
        end = self.tokenizer.eos_token
        return prompt, answer[: answer.rindex(end) + len(end)]

    def _refuse_mischief(self, scene: Scene, conversation: Conversation) -> None:
        for text, allowed in ((conversation.prompt, ()), (conversation.answer, conversation.special)):
            for token in self.special:
                if token in text and token not in allowed:
                    raise SceneError(
                        f"scene {scene.id}: its text holds the special token {token}; remove it from the record"
                    )

    def _process(self, prompt: str, shown: list[Shown]) -> Any:
        """What the processor makes of the prompt and the media."""
        clips = [camera for camera in shown if camera.is_clip]
        arguments: dict[str, Any] = {}
        if clips:
            # The clips are the frames to show: the processor must not sample them again.
            arguments = {"do_sample_frames": False, "video_metadata": [clip.metadata for clip in clips]}
            # Each frame gets its own brackets. Whether those of the whole clip stay around them differs between
            # releases of transformers; without, all make the tokens of 4.57, the checkpoints' own release.
            video = self.processor.video_token
            prompt = prompt.replace(f"<|vision_start|>{video}<|vision_end|>", video)
        return self.processor(
            text=[prompt],
            images=[camera.images[0] for camera in shown if not camera.is_clip] or None,
            videos=[clip.images for clip in clips] or None,
            return_tensors="pt",
            videos_kwargs=arguments,
        )

    def _chosen(self, scene: Scene) -> list[Camera]:
        if self.cameras is None:
            return list(scene.cameras)
        there = {camera.name: camera for camera in scene.cameras}
        return [there[name] for name in self.cameras if name in there]

    def _look(self, scene: Scene, camera: Camera) -> Shown:
        count = len(camera.times)
        frames = np.linspace(count - 1, 0, min(count, self.video_frames or count)).round().astype(np.int64)[::-1]
        try:
            if camera.clip is None:
                images = [self._still(camera, frame) for frame in frames.tolist()]
            else:
                images = decode_clip(camera.clip, self.image_width, frames.tolist())
        except SceneError as error:
            raise SceneError(f"scene {scene.id}: camera {camera.name}: {error}") from error
        return Shown(images, np.asarray(camera.times)[frames])

    def _still(self, camera: Camera, frame: int) -> Image.Image:
        try:
            image = Image.open(io.BytesIO(camera.frames[frame])).convert("RGB")
        except UNREADABLE as error:
            raise SceneError(f"frame {frame}: unreadable image ({error}); fetch or encode it again") from error
        if self.image_width is not None and image.width > self.image_width:
            height = round(image.height * self.image_width / image.width)
            image = image.resize((self.image_width, height), Image.Resampling.BILINEAR)
        return image


UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises for a damaged image."""
