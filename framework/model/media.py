"""Images and clips of a micro-batch as one input of the vision tower."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from framework.scene.batch import MicroBatch

MEDIA = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")
"""Keys of a micro-batch that are passed to the backbone unchanged."""


def media_of(batch: MicroBatch) -> dict[str, Tensor]:
    """Pixels and grids of a micro-batch, where it has any."""
    return {key: cast(Tensor, batch[key]) for key in MEDIA if batch.get(key) is not None}  # type: ignore[literal-required]


def clips_as_images(batch: MicroBatch, config: Any) -> MicroBatch:
    """Returns `batch` with its clips among its images, in the order of their tokens, and images' tokens for theirs.

    The tower computes both alike, but is called once for each kind. Ranks whose batches have different kinds would
    wait for each other's weights for ever. `config` is the backbone's. Position ids depend on the kinds: they are to be
    computed before. A batch of one kind is returned as it is.
    """
    if batch.get("pixel_values") is None or batch.get("pixel_values_videos") is None:
        return batch
    ids, merged = batch["input_ids"], config.vision_config.spatial_merge_size**2
    image, video = config.image_token_id, config.video_token_id
    grids = torch.cat([batch["image_grid_thw"], batch["video_grid_thw"]])
    places = [_first_places(ids, image, batch["image_grid_thw"], merged)]
    places += [_first_places(ids, video, batch["video_grid_thw"], merged)]
    order = torch.cat(places).argsort().tolist()
    patches = torch.cat([batch["pixel_values"], batch["pixel_values_videos"]]).split(grids.prod(-1).tolist())
    whole = batch.copy()
    del whole["pixel_values_videos"], whole["video_grid_thw"]
    whole["input_ids"] = ids.masked_fill(ids == video, image)
    whole["pixel_values"] = torch.cat([patches[index] for index in order])
    whole["image_grid_thw"] = grids[order]
    return whole


def _first_places(ids: Tensor, token: int, grids: Tensor, merged: int) -> Tensor:
    """The place of each medium's first `token` in the flattened `ids`, `(media,)`. `merged` patches are a token."""
    ends = (grids.prod(-1) // merged).cumsum(0)
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    return (ids.flatten() == token).nonzero()[:, 0][starts]
