"""A conversation as the backbone's own chat template and processor spell it, with labels on the assistant's tokens
alone.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from framework.data.sensors import SensorInput
from framework.data.tasks import Conversation
from framework.scene.types import Camera, FloatArray, Scene, SceneError

IGNORED = -100


@dataclass(frozen=True, slots=True)
class Rendered:
    """One sample before collation. `input_ids` and `labels` are `(t,)`; `media` holds the processor's pixel tensors;
    `sensors` rows by name.
    """

    input_ids: Tensor
    labels: Tensor
    media: dict[str, Tensor]
    sensors: dict[str, FloatArray] = field(default_factory=dict)


class ChatRenderer:
    """Renders scenes by the template and image processor of `processor` (a transformers Qwen3VLProcessor).

    `sensors` maps encoder names to their inputs. `cameras` names the cameras to show, in order (None: all of them);
    images wider than `image_width` pixels are scaled down before the processor sees them. Samples longer than
    `max_length` tokens are refused.
    """

    def __init__(
        self,
        processor: Any,
        sensors: Mapping[str, SensorInput],
        max_length: int,
        cameras: Sequence[str] | None = None,
        image_width: int | None = None,
    ) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.sensors = dict(sensors)
        self.max_length = max_length
        self.cameras = cameras
        self.image_width = image_width
        self.special = tuple(self.tokenizer.get_added_vocab())
        unknown = [s.placeholder for s in self.sensors.values() if s.placeholder not in self.special]
        if unknown:
            raise ValueError(
                f"data.sensors: the tokenizer does not know {unknown}; add them to model.backbone's special tokens"
            )

    def render(self, scene: Scene, conversation: Conversation, for_generation: bool = False) -> Rendered:
        """The sample of one exchange; with `for_generation` the prompt alone, up to where the assistant begins to
        speak.

        Raises `SceneError` naming the scene and what is wrong: an unreadable image, a special token in somebody's
        text, too many tokens.
        """
        self._refuse_mischief(scene, conversation)
        rows = {name: found for name, sensor in self.sensors.items() if (found := sensor.rows(scene)) is not None}
        images, clips = self._media(scene)
        prompt, answer = self._spell(scene, conversation, rows, len(images), len(clips))
        processed = self.processor(
            text=[prompt],
            images=images or None,
            videos=clips or None,
            return_tensors="pt",
            **self._video_arguments(clips),
        )
        prompt_ids = processed["input_ids"][0]
        answer_ids = torch.tensor([] if for_generation else self.tokenizer(answer)["input_ids"], dtype=torch.int64)
        input_ids = torch.cat([prompt_ids, answer_ids])
        if len(input_ids) > self.max_length:
            raise SceneError(
                f"scene {scene.id}: {len(input_ids)} tokens, data.max_length is {self.max_length}: raise it"
            )
        labels = torch.cat([torch.full_like(prompt_ids, IGNORED), answer_ids])
        media = {name: processed[name] for name in _MEDIA if name in processed}
        return Rendered(input_ids, labels, media, rows)

    def _spell(
        self, scene: Scene, conversation: Conversation, rows: dict[str, FloatArray], images: int, clips: int
    ) -> tuple[str, str]:
        """The prompt and the answer as the template renders them, the answer with its end of turn."""
        placeholders = "".join(
            self.sensors[name].placeholder * self.sensors[name].placeholders(found) for name, found in rows.items()
        )
        media = [{"type": "image"}] * images + [{"type": "video"}] * clips
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

    def _media(self, scene: Scene) -> tuple[list[Image.Image], list[list[Image.Image]]]:
        shown = {camera.name: camera for camera in scene.cameras}
        names = list(shown) if self.cameras is None else [name for name in self.cameras if name in shown]
        stills = [self._image(scene, shown[name], 0) for name in names if len(shown[name].frames) == 1]
        clips = [
            [self._image(scene, shown[name], i) for i in range(len(shown[name].frames))]
            for name in names
            if len(shown[name].frames) > 1
        ]
        return stills, clips

    def _image(self, scene: Scene, camera: Camera, frame: int) -> Image.Image:
        try:
            image = Image.open(io.BytesIO(camera.frames[frame])).convert("RGB")
        except (UnidentifiedImageError, OSError) as error:
            raise SceneError(
                f"scene {scene.id}: camera {camera.name}, frame {frame}: unreadable image ({error})"
            ) from error
        if self.image_width is not None and image.width > self.image_width:
            height = round(image.height * self.image_width / image.width)
            image = image.resize((self.image_width, height), Image.Resampling.BILINEAR)
        return image

    def _video_arguments(self, clips: list[list[Image.Image]]) -> dict[str, Any]:
        """Clips come as the frames to show: the processor must not sample them again."""
        return {"videos_kwargs": {"do_sample_frames": False}} if clips else {}


_MEDIA = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")
