"""The batch that `data` passes to `model`: tensors by name. Types only, without torch at run time."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from framework.scene.types import Scene

if TYPE_CHECKING:
    from torch import Tensor

IGNORE_INDEX = -100
"""The label of positions from which nothing is learned, as in torch's `cross_entropy` and Hugging Face."""


class SensorRows(TypedDict):
    """The rows of one sensor over a micro-batch: of the `m` samples that have it, in the order of their placeholders.

    The encoder returns `(m, tokens, hidden)` and a `(m, tokens)` mask. The tokens under that mask replace the
    placeholders, in order.
    """

    values: Tensor
    """`(m, rows, channels)` float32 in the ego frame, padded with zeros."""
    mask: Tensor
    """`(m, rows)` bool, False for padding."""


class MicroBatch(TypedDict, total=False):
    """One micro-batch of `b` rows and `t` positions.

    A row is one sample. With `segments` it is several samples, one after another; with `shared_prefix` it is one prompt
    followed by several answers to it, none of which sees another. What has no rows (images, sensors, scenes) is ordered
    by sample, row by row.
    """

    input_ids: Tensor
    """`(b, t)` int64: token ids."""
    attention_mask: Tensor
    """`(b, t)` int64: 0 for padding."""
    labels: Tensor
    """`(b, t)` int64, *not* shifted: position i has the label of the token at i, `IGNORE_INDEX` where nothing is
    learned.
    """
    mm_token_type_ids: Tensor
    """`(b, t)` int64: 0 text, 1 image, 2 video."""
    segments: Tensor
    """`(b, t)` int64, where rows are packed: the sample's number within the row, from 1; 0 for padding, which comes
    last.
    """
    shared_prefix: Tensor
    """`(b, t)` int64, where answers share a prompt: 0 for the prompt, the answer's number from 1."""
    pixel_values: Tensor
    """`(patches, dim)`, from the backbone's processor; absent where no sample has images."""
    image_grid_thw: Tensor
    """`(images, 3)`, from the backbone's processor; absent where no sample has images."""
    pixel_values_videos: Tensor
    """As `pixel_values`, of videos."""
    video_grid_thw: Tensor
    """As `image_grid_thw`, of videos."""
    sensors: dict[str, SensorRows]
    """The rows of each sensor, by the name of its encoder (lidar, radar, boxes, ego, ...)."""
    scenes: list[Scene]
    """The scene of each sample, for metrics."""
    tasks: list[str]
    """The task of each sample, for metrics."""
    sample_ids: list[str]
    """The id of each sample, for ledgers."""
