"""What the data room hands the model room: tensors by name. Types only, so that nothing here imports torch at run
time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from framework.scene.types import Scene

if TYPE_CHECKING:
    from torch import Tensor

IGNORE_INDEX = -100
"""The label of positions from which nothing is learned, as torch's `cross_entropy` and Hugging Face have it."""


class SensorRows(TypedDict):
    """The rows of one sensor over a micro-batch, for the samples that have it, in the order of their placeholders.

    `values` `(m, rows, channels)` float32 in the ego frame, padded with zeros; `mask` `(m, rows)` bool, True where a
    row is real. The encoder returns `(m, tokens, hidden)` and a `(m, tokens)` mask; the tokens kept by that mask
    replace the placeholders, in order.
    """

    values: Tensor
    mask: Tensor


class MicroBatch(TypedDict, total=False):
    """One micro-batch of `b` rows and `t` positions.

    `input_ids`, `attention_mask`, `labels` are `(b, t)` int64; `labels` is `IGNORE_INDEX` wherever nothing is learned
    and is *not* shifted (position i holds the token at i). `mm_token_type_ids` `(b, t)`: 0 text, 1 image, 2 video.
    `pixel_values` `(patches, dim)` and `image_grid_thw` `(images, 3)` as the backbone's processor returns them,
    likewise `pixel_values_videos` and `video_grid_thw`; absent where no sample has any. `sensors` maps an encoder's
    name (lidar, radar, boxes, ego, ...) to its rows. `scenes`, `tasks` and `sample_ids`, one for each sample, are what
    metrics and ledgers need in addition to the tensors.

    A row is one sample, unless there are `segments` `(b, t)` int64: then it is several, one after another, and each
    position has its sample's number within the row, from 1 on; 0 is padding, which only follows. Samples are ordered
    row by row in everything that has no rows.

    Or there are `shared_prefix` `(b, t)` int64: then a row is one prompt (0) followed by several answers to it (from 1
    on), none of which sees another.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    mm_token_type_ids: Tensor
    segments: Tensor
    shared_prefix: Tensor
    pixel_values: Tensor
    image_grid_thw: Tensor
    pixel_values_videos: Tensor
    video_grid_thw: Tensor
    sensors: dict[str, SensorRows]
    scenes: list[Scene]
    tasks: list[str]
    sample_ids: list[str]
