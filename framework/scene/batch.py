"""The batch that `data` passes to `model`: tensors by name. Types only, without torch at run time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

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


class RowLayout(TypedDict, total=False):
    """A micro-batch as one row of `n` tokens without padding, its samples one after another; some spare tokens may
    follow, `t` with them. The host computes it once (see `framework.model.row_layout`).
    """

    size: int
    """`t`."""
    places: Tensor
    """`(n,)` int64: each token's place among the micro-batch's rows, flattened."""
    rows: Tensor
    """The other way: each place's position in the row; 0 for padding."""
    input_ids: Tensor
    """`(1, t)` int64."""
    position_ids: Tensor
    """`(4, 1, t)` int64."""
    samples: Tensor
    """`(t,)` int64: each token's sample, from 0; -1 for spare ones."""
    lengths: list[int]
    """Tokens of each segment: of a sample, or of a prompt or one of its answers; spare tokens are the last one."""
    bounds: Tensor
    """Where segments begin, and the last one ends, int32."""
    keys: Tensor
    """Where answers share prompts: the positions that segments see, int64, segment by segment."""
    key_lengths: list[int]
    """How many of `keys` each segment sees."""
    key_bounds: Tensor
    """As `bounds`, of `keys`."""
    sensors: dict[str, Tensor]
    """The positions of each sensor's placeholders, int64."""
    kept: dict[str, Tensor]
    """The real ones among each sensor's rows, flattened, int64."""
    media: Tensor
    """The positions of the tokens of images or clips, int64."""
    tower: dict[str, Any]
    """Arguments of the vision tower."""
    frames: list[int]
    """Patches of each frame."""


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
    layout: RowLayout
    """The micro-batch as one row without padding, for models that compute it so."""
    sensors: dict[str, SensorRows]
    """The rows of each sensor, by the name of its encoder (lidar, radar, boxes, ego, ...)."""
    scenes: list[Scene]
    """The scene of each sample, for metrics."""
    tasks: list[str]
    """The task of each sample, for metrics."""
    sample_ids: list[str]
    """The id of each sample, for ledgers."""
