"""What a prompt shows of a scene: all of its inputs, or some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from framework.scene.types import Scene

Input = Literal["cameras", "lidar", "radar", "boxes"]
"""An input that a prompt may do without: images, the LiDAR's sweep, the radars' returns, the perception stack's boxes.
The ego's history and the command are always shown."""
ABSENT: dict[Input, dict[str, Any]] = {
    "cameras": {"cameras": ()},
    "lidar": {"lidar": None},
    "radar": {"radar": None},
    "boxes": {"perception": None},
}
"""The fields of a scene that lacks an input."""


def with_inputs(scene: Scene, inputs: Sequence[Input] | None) -> Scene:
    """`scene` with no inputs but `inputs`; None keeps all. Annotations and history stay."""
    if inputs is None:
        return scene
    fields = {key: value for name, lacking in ABSENT.items() if name not in inputs for key, value in lacking.items()}
    return replace(scene, **fields)
