"""Renders outlines of scenes: the tokens of the scenes themselves, counted without their images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from framework.data.render.camera_view import CameraView
from framework.data.render.chat import ChatRenderer
from framework.data.render.collate import MEDIA
from framework.scene.dialogue import Medium
from framework.scene.types import Camera

_MEDIA = re.compile(r"((?:<\|vision_start\|>|<\|vision_end\|>|<\|image_pad\|>|<\|video_pad\|>)+)")
"""Media of a prompt that lie next to each other."""
_MEDIUM = re.compile(r"<\|image_pad\|>|<\|video_pad\|>")


class OutlineRenderer(ChatRenderer):
    """A `ChatRenderer` for the outlines of `framework.data.shards.statistics`: `plan` counts with it.

    Images are black pictures of the size that the camera declares. The processor sees each combination of neighbours
    once: what it makes of them does not depend on the rest of the prompt. Pixel tensors have a shape and no data.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._seen: dict[Any, dict[str, Tensor]] = {}

    def images(self, camera: Camera | Medium, frames: Sequence[int]) -> list[Image.Image]:
        """See `ChatRenderer`."""
        return [Image.new("RGB", self.shown_size(camera))] * len(frames)

    def process(self, prompt: str, views: list[CameraView]) -> dict[str, Tensor]:
        """See `ChatRenderer`."""
        left, parts = iter(views), []
        for number, text in enumerate(_MEDIA.split(prompt)):
            if number % 2:
                parts.append(self._media(text, list(islice(left, len(_MEDIUM.findall(text))))))
            else:
                parts.append({"input_ids": self._ids(text)})
        names = dict.fromkeys(name for part in parts for name in part)
        return {
            name: torch.cat([part[name] for part in parts if name in part], dim=1 if name == "input_ids" else 0)
            for name in names
        }

    def _media(self, text: str, views: list[CameraView]) -> dict[str, Tensor]:
        shown = tuple((view.images[0].size, tuple(view.metadata["frames_indices"])) for view in views)
        if shown not in self._seen:
            self._seen[shown] = _without_data(super().process(text, views))
        return self._seen[shown]

    def _ids(self, text: str) -> Tensor:
        return torch.tensor([self.tokenizer(text)["input_ids"]], dtype=torch.int64)


def _without_data(processed: Any) -> dict[str, Tensor]:
    tensors = {name: processed[name] for name in ("input_ids", *MEDIA) if name in processed}
    return {name: value.to("meta") if name.startswith("pixel") else value for name, value in tensors.items()}
