"""The protocol of a recorded dataset: which frames a folder holds, and the scene of each."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from framework.scene.types import Scene

Frame = tuple[str, int]
"""A file and a place in it: an index, a step or a timestamp, as the dataset counts."""


class RecordedDataset(Protocol):
    """A public dataset in its own layout. A module with these functions is one."""

    def find_frames(self, folder: Path) -> list[Frame]:
        """Returns the frames below `folder` that can become scenes, those of one file next to each other."""
        ...

    def left_out(self, folder: Path) -> dict[str, int]:
        """Returns the number of frames below `folder` that `find_frames` passes over, by the reason."""
        ...

    def read_scene(self, frame: Frame) -> Scene:
        """Returns the scene of one frame. Raises `SceneError`, `OSError`, `KeyError`, `IndexError` or `ValueError`
        for a file that is missing, damaged or laid out differently.
        """
        ...
