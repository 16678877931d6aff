"""A sample on its way from the renderer to the batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from framework.data.stream.address import Address
from framework.scene.types import FloatArray, Scene


@dataclass(frozen=True, slots=True)
class Rendered:
    """One exchange as tokens, pixels and sensor rows, before collation."""

    input_ids: Tensor
    """Token ids `(t,)` int64: the prompt, then the answer unless it is to be generated."""
    labels: Tensor
    """`(t,)` int64, not shifted: the token where it is learned, else `IGNORE_INDEX`."""
    media: dict[str, Tensor]
    """The processor's pixel tensors and grids by name, see `MicroBatch`; empty without cameras."""
    sensors: dict[str, FloatArray] = field(default_factory=dict)
    """Rows `(n, channels)` of every sensor that the scene has, by the encoder's name."""


class Sample(NamedTuple):
    """A rendered exchange with the scene and the task it came from."""

    rendered: Rendered
    """What the model reads."""
    scene: Scene
    """The scene; in a stream without its raw cameras, lidar, radar and dialogue, which `rendered` replaces."""
    task: str
    """The task's name in the recipe."""
    address: Address | None = None
    """Where the sample is in the mixture; None for a scene that comes from no stream."""
