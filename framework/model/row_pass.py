"""The forward pass of a language-action model over one row without padding, which reads nothing from the device."""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from framework.model.families import Family
from framework.model.media import clips_as_images, media_of
from framework.model.recurrent import kernel_lengths
from framework.model.routers import RouterRecord
from framework.model.row_layout import frames_of, row_layout, segments_of
from framework.scene.batch import MicroBatch, RowLayout


class RowModel(Protocol):
    """A model that computes rows (`LanguageActionModel`)."""

    backbone: Any
    """The network of transformers."""
    family: Family
    """What its kind of network can do."""
    placeholder_ids: dict[str, int]
    """The token id of each sensor's placeholder."""
    row_grain: int
    """What a row's length is a multiple of."""

    def position_ids(self, batch: MicroBatch, /) -> Tensor:
        """Running and multimodal positions, `(4, b, t)`."""
        ...

    def embed(self, batch: MicroBatch, layout: RowLayout | None = None, /) -> Tensor:
        """Input embeddings, with the features of sensors."""
        ...


def lay_out(model: RowModel, batch: MicroBatch) -> MicroBatch:
    """The batch with its layout on the batch's own device, and its clips among its images."""
    config, device = model.backbone.config, batch["input_ids"].device
    host = batch
    if device.type != "cpu":
        read = {key: value for key, value in batch.items() if not key.startswith("pixel_values")}
        host = cast(MicroBatch, tree_map_only(Tensor, Tensor.cpu, read))
    position_ids = model.position_ids(host)
    batch = clips_as_images(batch, config)
    if "video_grid_thw" in host and "video_grid_thw" not in batch:
        kept = ("input_ids", "image_grid_thw")
        host = {**host, **{key: batch[key].cpu() for key in kept}}  # type: ignore[literal-required, typeddict-item]
    media_token = config.image_token_id if "image_grid_thw" in batch else config.video_token_id
    visual = model.backbone.model.visual
    layout = row_layout(host, position_ids, model.placeholder_ids, visual, media_token, model.row_grain)
    return {**batch, "layout": cast(RowLayout, tree_map_only(Tensor, lambda each: each.to(device), layout))}


def run_row(
    model: RowModel,
    batch: MicroBatch,
    layout: RowLayout,
    positions: Tensor | None,
    routers: RouterRecord | None,
) -> Tensor:
    """Hidden states as `LanguageActionModel.forward` returns them, of a batch with a layout."""
    embeddings, rest = _with_features(model, model.embed(batch, layout), batch, layout)
    segments = segments_of(layout)
    if model.family.recurrent:
        rest |= kernel_lengths(segments)
    if routers is not None and model.family.experts:
        rest["output_router_logits"] = True
    # Without the running position transformers looks for no samples in the row.
    outputs = model.backbone.model.language_model(
        inputs_embeds=embeddings,
        position_ids=layout["position_ids"][1:],
        use_cache=False,
        segments=segments,
        **rest,
    )
    if "output_router_logits" in rest:
        assert routers is not None
        routers.logits, routers.samples = outputs.router_logits, layout["samples"]
    hidden = cast(Tensor, outputs[0])[0]
    if positions is None:
        places, shape = layout["places"], batch["input_ids"].shape
        rows = hidden.new_zeros(shape.numel(), hidden.shape[-1]).index_copy(0, places, hidden[: len(places)])
        return rows.view(*shape, -1)
    flat = positions.flatten().nonzero()[:, 0] if positions.dtype == torch.bool else positions
    return hidden.index_select(0, layout["rows"].index_select(0, flat))


def _with_features(
    model: RowModel, embeddings: Tensor, batch: MicroBatch, layout: RowLayout
) -> tuple[Tensor, dict[str, Any]]:
    """Embeddings `(1, t, d)` with the features of images and clips, and what the language model adds to its first
    blocks (DeepStack)."""
    media, visual = media_of(batch), model.backbone.model.visual
    if not media:
        return embeddings, {}
    kind = "image_grid_thw" in media
    pixels, grid = (media["pixel_values"], media["image_grid_thw"]) if kind else (
        media["pixel_values_videos"], media["video_grid_thw"])  # fmt: skip
    known = {**layout["tower"], "segments": frames_of(layout)} if layout["tower"] else {}
    outputs = visual(pixels.type(visual.dtype), grid_thw=grid, return_dict=True, **known)
    features = outputs[0] if isinstance(outputs, tuple) else outputs.pooler_output  # a tuple in transformers 4.57
    depths = outputs[1] if isinstance(outputs, tuple) else getattr(outputs, "deepstack_features", None)
    if len(features) != len(layout["media"]):
        raise ValueError(
            f"the vision tower gave {len(features)} tokens, the conversations hold {len(layout['media'])}: the "
            "processor and the backbone differ in patch or merge size"
        )
    flat = embeddings.flatten(0, 1).index_copy(0, layout["media"], features.to(embeddings.dtype))
    added = {"visual_pos_masks": layout["media"], "deepstack_visual_embeds": depths} if depths else {}
    return flat.view(embeddings.shape), added
