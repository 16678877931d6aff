"""Renders outlines of scenes: the tokens of the scenes themselves, counted without their images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from framework.data.render.chat import CameraView, ChatRenderer
from framework.scene.types import Camera

_MEDIA = re.compile(r"(?:<\|vision_start\|>|<\|vision_end\|>|<\|image_pad\|>|<\|video_pad\|>)+")
"""The media of a prompt, which lie next to each other."""


class OutlineRenderer(ChatRenderer):
    """A `ChatRenderer` for the outlines of `framework.data.shards.statistics`: `plan` counts with it.

    Images are black pictures of the size that the camera declares. The processor sees each combination of them once:
    what it makes of them does not depend on the rest of the prompt. Pixel tensors have a shape and no data.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._seen: dict[Any, dict[str, Tensor]] = {}

    def images(self, camera: Camera, frames: Sequence[int]) -> list[Image.Image]:
        """See `ChatRenderer`."""
        return [Image.new("RGB", self.shown_size(camera))] * len(frames)

    def process(self, prompt: str, views: list[CameraView]) -> dict[str, Tensor]:
        """See `ChatRenderer`."""
        media = _MEDIA.search(prompt)
        if media is None:
            return dict(super().process(prompt, views))
        shown = tuple((view.images[0].size, tuple(view.metadata["frames_indices"])) for view in views)
        if shown not in self._seen:
            self._seen[shown] = _without_data(super().process(media[0], views))
        processed = self._seen[shown]
        before, after = (self._ids(text) for text in (prompt[: media.start()], prompt[media.end() :]))
        return {**processed, "input_ids": torch.cat([before, processed["input_ids"], after], dim=1)}

    def _ids(self, text: str) -> Tensor:
        return torch.tensor([self.tokenizer(text)["input_ids"]], dtype=torch.int64)


def _without_data(processed: Any) -> dict[str, Tensor]:
    tensors = {name: value for name, value in processed.items() if isinstance(value, Tensor)}
    return {name: value.to("meta") if name.startswith("pixel") else value for name, value in tensors.items()}
