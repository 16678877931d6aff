"""Renders conversations with the backbone's own chat template and processor, with labels on the assistant's tokens
alone.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from framework.data.render.camera_view import CameraView
from framework.data.render.collate import MEDIA, SpecialIds
from framework.data.render.dialogue import control_tokens, render_dialogue
from framework.data.render.sample import Rendered, Sample
from framework.data.render.sensors import SensorInput
from framework.data.render.tasks import Conversation, Converse, DialogueConversation, Task
from framework.scene.batch import IGNORE_INDEX
from framework.scene.dialogue import Medium
from framework.scene.image import read_frame
from framework.scene.still import scaled_down, shown_frames, shown_size
from framework.scene.types import Camera, FloatArray, Scene, SceneError
from framework.scene.video import decode_clip

log = logging.getLogger(__name__)


class ChatRenderer:
    """Renders scenes with the chat template and the image processor of the backbone.

    Args:
        processor: The backbone's processor (transformers `Qwen3VLProcessor`).
        sensors: The sensors' inputs by the name of their encoder.
        max_length: Tokens that a sample may have.
        cameras: Names of the cameras to show, in order; None shows all.
        image_width: Pixels to which wider images are scaled down before the processor sees them; None keeps them.
        video_frames: Frames shown of a clip, evenly spaced up to its newest; None shows all.

    Raises:
        ValueError: `video_frames` is less than 1, or the tokenizer lacks a sensor's placeholder.
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
        self._warned = False
        self.special = tuple(self.tokenizer.get_added_vocab())
        self.control = control_tokens(self.tokenizer)
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
        """Returns one exchange rendered; with `for_generation` the prompt alone, up to where the assistant's answer
        starts.

        Raises `SceneError` naming the scene and what is wrong: an unreadable image or clip, a special token in its
        texts, too many tokens.
        """
        if isinstance(conversation, DialogueConversation):
            return render_dialogue(self, scene.id, conversation, for_generation)
        self._check_special_tokens(scene, conversation)
        rows = {name: values for name, sensor in self.sensors.items() if (values := sensor.rows(scene)) is not None}
        views = self.views(scene)
        prompt, answer = self._apply_template(scene, conversation, rows, views)
        processed = self.process(prompt, views)
        prompt_ids = processed["input_ids"][0]
        answer_ids = torch.tensor([] if for_generation else self.tokenizer(answer)["input_ids"], dtype=torch.int64)
        input_ids = torch.cat([prompt_ids, answer_ids])
        if len(input_ids) > self.max_length:
            smaller = f", or lower model.backbone.max_pixels (cameras: {len(views)})" if views else ""
            raise SceneError(
                f"scene {scene.id}: {len(input_ids)} tokens, data.max_length is {self.max_length}: raise it{smaller}"
            )
        labels = torch.cat([torch.full_like(prompt_ids, IGNORE_INDEX), answer_ids])
        media = {name: processed[name] for name in MEDIA if name in processed}
        return Rendered(input_ids, labels, media, rows)

    def ask(self, scene: Scene, name: str, task: Task) -> Sample:
        """Returns the prompt of `task`, `name` in the recipe, about a scene whose answer need not be known. Raises
        `SceneError` as `render` does.
        """
        dialogue = isinstance(task, Converse)
        asked = task.conversation(scene, name) if dialogue else Conversation(task.prompt(scene, name), answer="")
        return Sample(self.render(scene, asked, for_generation=True), scene, name)

    def views(self, scene: Scene) -> list[CameraView]:
        """Returns the images that a prompt shows of the scene's cameras. Raises `SceneError` for an unreadable image,
        and what `shown_cameras` raises.
        """
        return [self.view(f"scene {scene.id}: camera {each.name}", each) for each in self.shown_cameras(scene)]

    def shown_cameras(self, scene: Scene) -> list[Camera]:
        """Returns the scene's cameras that a prompt shows, in order. A rig may lack some of the recipe's cameras, which
        is warned of once. Raises `SceneError` for a scene with cameras of which the recipe names none.
        """
        if self.cameras is None or not scene.cameras:
            return list(scene.cameras)
        present = {camera.name: camera for camera in scene.cameras}
        shown = [name for name in self.cameras if name in present]
        if len(shown) < len(self.cameras):
            missing = sorted(set(self.cameras) - set(present))
            message = f"data.cameras: {missing} are no cameras of scene {scene.id}, which has {sorted(present)}"
            if not shown and self.cameras:
                raise SceneError(f"{message}; name one of them, or null for all")
            if not self._warned:
                log.warning("%s", message)
                self._warned = True
        return [present[name] for name in shown]

    def _apply_template(
        self, scene: Scene, conversation: Conversation, rows: dict[str, FloatArray], views: list[CameraView]
    ) -> tuple[str, str]:
        """Returns the prompt and the answer as the template renders them, the answer with its end of turn."""
        placeholders = "".join(
            self.sensors[name].placeholder * self.sensors[name].placeholders(values) for name, values in rows.items()
        )
        media = [{"type": "video" if view.is_clip else "image"} for view in views]
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

    def _check_special_tokens(self, scene: Scene, conversation: Conversation) -> None:
        for text, allowed in ((conversation.prompt, ()), (conversation.answer, conversation.special)):
            for token in self.special:
                if token in text and token not in allowed:
                    raise SceneError(
                        f"scene {scene.id}: its text holds the special token {token}; remove it from the record"
                    )

    def process(self, prompt: str, views: list[CameraView]) -> Any:
        """Returns the processor's tensors for the prompt and the media."""
        clips = [view for view in views if view.is_clip]
        arguments: dict[str, Any] = {}
        if clips:
            # The frames are selected already: the processor must not sample them again.
            arguments = {"do_sample_frames": False, "video_metadata": [clip.metadata for clip in clips]}
        return self.processor(
            text=[prompt],
            images=[view.images[0] for view in views if not view.is_clip] or None,
            videos=[clip.images for clip in clips] or None,
            return_tensors="pt",
            videos_kwargs=arguments,
        )

    def view(self, name: str, camera: Camera | Medium) -> CameraView:
        """Returns what is shown of a camera or medium. Raises `SceneError`, which begins with `name`, where it cannot
        be read.
        """
        frames = shown_frames(len(camera.times), self.video_frames)
        try:
            images = self.images(camera, frames)
        except SceneError as error:
            raise SceneError(f"{name}: {error}") from error
        return CameraView(images, np.asarray(camera.times)[frames])

    def images(self, camera: Camera | Medium, frames: Sequence[int]) -> list[Image.Image]:
        """Returns the images of a camera at the indices `frames`. Raises `SceneError` for an unreadable one."""
        if camera.clip is not None:
            return decode_clip(camera.clip, self.image_width, frames)
        return [self._still(camera, frame) for frame in frames]

    def _still(self, camera: Camera | Medium, frame: int) -> Image.Image:
        return scaled_down(read_frame(camera, frame), self.image_width)

    def shown_size(self, camera: Camera | Medium) -> tuple[int, int]:
        """Width and height of the camera's images as the processor gets them."""
        return shown_size(camera.width, camera.height, self.image_width)
