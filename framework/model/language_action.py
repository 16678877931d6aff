"""The language-action model: a vision-language backbone and sensor encoders over one token sequence."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from framework.model.families import family_of
from framework.model.media import clips_as_images, media_of
from framework.model.quantized_base import restored
from framework.model.recurrent import (
    kernels_installed,
    packed_lengths,
    separate_rows,
    tell_missing_kernels,
)
from framework.model.routers import RouterRecord, sample_numbers
from framework.model.row_layout import GRAIN
from framework.model.row_pass import lay_out, run_row
from framework.model.segments import LANGUAGE
from framework.model.sensor_tokens import insert_features
from framework.model.shared_prefix import prompts_only, shared_prefix_mask, shared_prefix_position_ids
from framework.model.weights import materialize
from framework.recipe.component import component
from framework.scene.batch import MicroBatch, RowLayout

if TYPE_CHECKING:
    from framework.model.backbone import Backbone
    from framework.model.encoders.base import Encoder
    from framework.model.flow_head import FlowHead
    from framework.model.kernels import Kernels
    from framework.model.lora import LoRA


def placeholder(name: str) -> str:
    """The special token that encoder `name` replaces by its features: `<|box|>` for `boxes`, else `<|<name>|>`."""
    return "<|box|>" if name == "boxes" else f"<|{name}|>"


@component
class LanguageActionModel(nn.Module):
    """A vision-language model that also reads sensors and answers with actions.

    The attribute `processor` is the backbone's, extended by all special tokens; the data pipeline renders conversations
    with it. Under `torch.device("meta")` nothing is read or allocated: the model can be measured but not run, and
    `processor` is None; `offline_processor()` makes one that counts the same tokens, or nearly.

    With the attribute `run_unused_encoders` set, encoders and vision tower also run on batches without inputs for them:
    data-parallel ranks deadlock unless they use the same parameters in the same order. For the same reason the tower
    computes images and clips in one call.

    Args:
        backbone: The vision-language model.
        encoders: Sensor encoders by the sensor's name, each a partial `framework.model.encoders.base.Encoder` that is
            called with `hidden=`. None: no sensors.
        special_tokens: Tokens of the action codec.
        initialize: Whether the backbone's weights are allocated and initialized at once. Otherwise they stay on the
            meta device until `materialize` and `init_weights`, so that a sharded rank only allocates its own shard.
            Encoders and adapters are small and initialized in either case.
        adapters: Low-rank adapters of linear layers. None: the model has none.
        action_head: Plans from the prompt's states, a partial `FlowHead` that is called with `hidden=`. None: all plans
            are answers in tokens.
        kernels: Kernels of libraries in place of the language model's arithmetic. None: torch's own operations.
    """

    def __init__(
        self,
        backbone: Backbone,
        encoders: Mapping[str, Callable[..., nn.Module]] | None = None,
        special_tokens: Sequence[str] = (),
        initialize: bool = True,
        adapters: LoRA | None = None,
        action_head: Callable[..., FlowHead] | None = None,
        kernels: Kernels | None = None,
    ) -> None:
        super().__init__()
        encoders = encoders or {}
        skeleton = torch.get_default_device().type == "meta"
        tokens = [placeholder(name) for name in encoders] + list(special_tokens)
        self.processor: Any = None if skeleton else backbone.processor(tokens)
        self.backbone = backbone.skeleton(self.processor)
        self.family = family_of(self.backbone.config.model_type)
        self.offline_processor = functools.partial(backbone.offline_processor, tokens)
        self._init_weights = functools.partial(backbone.init_weights, processor=self.processor)
        self.encoders = nn.ModuleDict({name: make(hidden=backbone.hidden) for name, make in encoders.items()})
        self.encoder_arguments: dict[str, dict[str, Any]] = {
            name: {**getattr(make, "keywords", {}), "hidden": backbone.hidden} for name, make in encoders.items()
        }  # exports name them
        if adapters is not None:
            adapters.attach(self)
        self.action_head = None if action_head is None else action_head(hidden=backbone.hidden)
        self.run_unused_encoders = False
        self.row_grain = GRAIN  # what the length of a row that is laid out is a multiple of
        self.placeholder_ids: dict[str, int] = {}
        if self.processor is not None:
            ids = self.processor.tokenizer.convert_tokens_to_ids
            self.placeholder_ids = {name: ids(placeholder(name)) for name in encoders}
        if kernels is not None:
            kernels.apply(self)
        if initialize and not skeleton:
            self.materialize(torch.get_default_device())
            self.init_weights()

    def materialize(self, device: torch.device) -> None:
        """Allocate this rank's shard of meta parameters on `device`, and move everything else there."""
        materialize(self, device)
        self.backbone.tie_weights()

    def init_weights(self) -> None:
        """Initialize this rank's shard of the backbone: from a checkpoint, or randomly from torch's seed.

        The values are the same on every mesh.
        """
        with restored(self.backbone):
            self._init_weights(self.backbone)

    @property
    def vocabulary(self) -> int:
        """Rows of the output head: tokens and spare rows."""
        return int(self.backbone.get_output_embeddings().weight.shape[0])

    @property
    def router_loss(self) -> float:
        """The coefficient of the loss that keeps experts evenly busy; 0 for a model without experts."""
        return float(self.backbone.config.text_config.router_aux_loss_coef) if self.family.experts else 0.0

    def forward(
        self, batch: MicroBatch, positions: Tensor | None = None, routers: RouterRecord | None = None
    ) -> Tensor:
        """Hidden states after the last norm, `(b, t, d)`.

        With `positions` they are those of its True entries, row by row, `(n, d)`, where it is `(b, t)` bool, or those
        at its flat indices into the rows, where it is `(n,)` int64. What routers chose is written into `routers`.
        Raises `ValueError` when a sensor of `batch` has no encoder or its tokens do not match its placeholders.
        """
        batch = self.lay_out(batch)
        if "layout" in batch:
            return run_row(self, batch, batch["layout"], positions, routers)
        position_ids, batch = self.position_ids(batch), clips_as_images(batch, self.backbone.config)
        embeddings, media = self.embed(batch), media_of(batch)
        routers = routers if self.family.experts else None
        separate = "shared_prefix" in batch or ("segments" in batch and not kernels_installed())
        if self.family.recurrent and separate:
            if "segments" in batch:
                tell_missing_kernels()
            hidden = self._run_separately(embeddings, position_ids, batch, routers)
        elif "segments" in batch:
            hidden = self._run_packed(embeddings, position_ids, batch, routers)
        else:
            mask = self._attention_mask(batch, embeddings.dtype)
            hidden = self.run_backbone(embeddings, mask, position_ids, media, None, routers)[0]
            if routers is not None:
                routers.samples = sample_numbers(batch).flatten()
        if positions is None:
            return hidden
        return hidden[positions] if positions.dtype == torch.bool else hidden.flatten(0, 1)[positions]

    def lay_out(self, batch: MicroBatch) -> MicroBatch:
        """The batch with its `layout`, where the model computes all samples as one row without padding.

        Of a batch in the host's memory nothing is read from a device: done once, before the batch is moved, it serves
        every pass. A recurrent model computes answers that share prompts in rows of their own, and without its kernels
        all samples.
        """
        separate = self.family.recurrent and ("shared_prefix" in batch or not kernels_installed())
        implementation = self.backbone.model.language_model.config._attn_implementation
        known = "layout" in batch or separate or implementation != LANGUAGE
        return batch if known else lay_out(self, batch)

    def enable_shared_prefix(self) -> None:
        """Replace flash attention by sdpa in the language model: only sdpa supports the mask of a shared prefix."""
        config = self.backbone.model.language_model.config
        if "flash" in config._attn_implementation:
            config._attn_implementation = "sdpa"

    def head(self, hidden: Tensor) -> Tensor:
        """Logits `(..., vocabulary)` of hidden states `(..., d)`; the logits at a position predict the next token.

        Under tensor parallelism they are a DTensor, sharded over the vocabulary.
        """
        return cast(Tensor, self.backbone.get_output_embeddings()(hidden))

    def embed(self, batch: MicroBatch, layout: RowLayout | None = None) -> Tensor:
        """Input embeddings `(b, t, d)`, or `(1, t, d)` of a `layout`: those of the tokens, with each sensor's features
        in place of its placeholders.

        The backbone inserts images itself.
        """
        ids, sensors = (batch if layout is None else layout)["input_ids"], batch.get("sensors", {})
        embeddings = cast(Tensor, self.backbone.get_input_embeddings()(ids))
        for name in sensors:
            if name not in self.encoders:
                raise ValueError(
                    f"sensor {name}: the batch has it but the model has no encoder of that name (it has: "
                    f"{', '.join(self.encoders) or 'none'}): add model.encoders.{name} or drop data.sensors.{name}"
                )
        for name, encoder in cast("Iterable[tuple[str, Encoder]]", self.encoders.items()):
            if name not in sensors:
                if self.run_unused_encoders:
                    empty = torch.zeros(1, 1, encoder.channels, device=ids.device)
                    embeddings = embeddings + _zero_of(encoder(empty, empty[..., 0] > 0))
                continue
            features, keep = encoder(sensors[name]["values"], sensors[name]["mask"])
            places = None
            if layout is not None:
                places = layout["sensors"][name]
                keep = layout["kept"][name] if keep is sensors[name]["mask"] else keep
            embeddings = insert_features(embeddings, ids, self.placeholder_ids[name], name, features, keep, places)
        if self.run_unused_encoders and not media_of(batch):
            embeddings = embeddings + _zero_of(self._encode_empty_image(embeddings))
        return embeddings

    def _encode_empty_image(self, embeddings: Tensor) -> Any:
        """The vision tower's output for the smallest possible image, all zeros."""
        vision = self.backbone.config.vision_config
        side = vision.spatial_merge_size
        width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        grid = torch.tensor([[1, side, side]], device=embeddings.device)
        return self.backbone.model.visual(embeddings.new_zeros(side * side, width), grid)

    def position_ids(self, batch: MicroBatch) -> Tensor:
        """Position ids `(4, b, t)`: the text's running position, then multimodal RoPE's three (time, height, width).

        The backbone computes the latter (Qwen3-VL, interleaved M-RoPE). Padding on either side does not count. Every
        segment of a packed row starts at 0.
        """
        if "segments" in batch:
            return self._packed_position_ids(batch)
        if "shared_prefix" in batch:
            return shared_prefix_position_ids(
                self.position_ids(prompts_only(batch)), batch["shared_prefix"], batch["attention_mask"]
            )
        mask, media = batch["attention_mask"], media_of(batch)
        text = (mask.cumsum(dim=-1) - 1).clamp(min=0)
        if not media:
            return text.expand(4, -1, -1)
        arguments: dict[str, Any] = {key: media.get(key) for key in ("image_grid_thw", "video_grid_thw")}
        if hasattr(self.backbone.model, "compute_3d_position_ids"):
            # transformers 5 reads the kinds of tokens; 4.57 finds them by the token ids.
            arguments["mm_token_type_ids"] = batch["mm_token_type_ids"]
        rope, _ = self.backbone.model.get_rope_index(batch["input_ids"], attention_mask=mask, **arguments)
        return torch.cat([text[None], rope.to(text.device)])

    def _packed_position_ids(self, batch: MicroBatch) -> Tensor:
        """The position ids of the samples as padded rows of their own, packed again; 0 on padding."""
        segments = batch["segments"]
        real = segments > 0
        rows, length = segments.shape
        samples = segments + (length + 1) * torch.arange(rows, device=segments.device)[:, None]
        lengths = samples[real].unique_consecutive(return_counts=True)[1].tolist()

        def unpack(values: Tensor) -> Tensor:
            return nn.utils.rnn.pad_sequence(values[real].split(lengths), batch_first=True)

        padded = batch.copy()
        del padded["segments"]
        padded["input_ids"] = unpack(batch["input_ids"])
        padded["attention_mask"] = unpack(batch["attention_mask"])
        padded["mm_token_type_ids"] = unpack(batch["mm_token_type_ids"])
        position_ids = segments.new_zeros(4, rows, length)
        position_ids[:, real] = self.position_ids(padded)[:, padded["attention_mask"].bool()]
        return position_ids

    def _run_packed(
        self, embeddings: Tensor, position_ids: Tensor, batch: MicroBatch, routers: RouterRecord | None
    ) -> Tensor:
        """Hidden states `(b, t, d)` of packed rows, in which no token attends to another segment.

        With position ids and no mask, transformers (4.57 and 5: `masking_utils.find_packed_sequence_indices`) starts a
        sequence wherever the text's position does not increase by one; each padding token, always at 0, is one. Its
        flash attention supports that for a single row only (`modeling_flash_attention_utils._is_packed_sequence`), and
        so do the kernels of recurrent layers, which take the ends of samples.
        """
        shape, media, lengths = embeddings.shape, media_of(batch), {}
        if self.family.recurrent:  # the vision tower must not be given the lengths
            embeddings, media = self._with_media(embeddings, batch), {}
        if self.family.recurrent or "flash" in self.backbone.model.language_model.config._attn_implementation:
            embeddings, position_ids = embeddings.flatten(0, 1)[None], position_ids.flatten(1)[:, None]
        if self.family.recurrent:
            lengths = packed_lengths(position_ids[0])
        outputs = self.run_backbone(embeddings, None, position_ids, media, None, routers, **lengths)
        if routers is not None:
            routers.samples = sample_numbers(batch).flatten()
        return cast(Tensor, outputs[0]).view(shape)

    def _run_separately(
        self, embeddings: Tensor, position_ids: Tensor, batch: MicroBatch, routers: RouterRecord | None
    ) -> Tensor:
        """Hidden states `(b, t, d)` of packed rows or of answers that share a prompt, each computed in a padded row of
        its own: a recurrent layer's state starts and ends with the row.
        """
        rows, shape = separate_rows(batch), embeddings.shape
        alone = self._with_media(embeddings, batch).flatten(0, 1)[rows.places]
        own_ids = position_ids.flatten(1)[:, rows.places] * rows.mask
        outputs = self.run_backbone(alone, rows.mask.long(), own_ids, {}, None, routers)
        if routers is not None:
            numbers = torch.arange(len(rows.mask), device=rows.mask.device)[:, None]
            routers.samples = torch.where(rows.mask, numbers, -1).flatten()
        return rows.scatter(outputs[0], shape[0] * shape[1]).view(shape)

    def _with_media(self, embeddings: Tensor, batch: MicroBatch) -> Tensor:
        """Embeddings with the features of images and clips, of a backbone that adds them nowhere else."""
        media, network, config = media_of(batch), self.backbone.model, self.backbone.config
        for kind, pixels, grid in (("image", "pixel_values", "image_grid_thw"),
                                   ("video", "pixel_values_videos", "video_grid_thw")):  # fmt: skip
            if pixels in media:
                outputs = getattr(network, f"get_{kind}_features")(media[pixels], media[grid], return_dict=True)
                features = torch.cat(list(outputs.pooler_output)).to(embeddings.dtype)
                places = batch["input_ids"] == getattr(config, f"{kind}_token_id")
                embeddings = embeddings.masked_scatter(places[..., None], features)
        return embeddings

    def _attention_mask(self, batch: MicroBatch, dtype: torch.dtype) -> Tensor:
        """The backbone's attention mask: `(b, t)`, or `(b, 1, t, t)` for a shared prefix, which it applies as it is.

        Raises `ValueError` for a shared prefix under flash attention, which does not support such a mask.
        """
        if "shared_prefix" not in batch:
            return batch["attention_mask"]
        kind = self.backbone.model.language_model.config._attn_implementation
        if "flash" in kind:
            raise ValueError(
                f"model.backbone: attention {kind} cannot share a prompt among answers; call enable_shared_prefix first"
            )
        visible = shared_prefix_mask(batch["shared_prefix"], batch["attention_mask"])[:, None]
        return visible if kind == "sdpa" else torch.where(visible, 0.0, torch.finfo(dtype).min).to(dtype)

    def run_backbone(
        self,
        embeddings: Tensor,
        mask: Tensor | None,
        position_ids: Tensor,
        media: Mapping[str, Tensor],
        cache: Any,
        routers: RouterRecord | None = None,
        **lengths: Any,
    ) -> Any:
        """Run the backbone without its head; returns the outputs of `transformers`.

        Args:
            embeddings: Input embeddings, `(b, t, d)`.
            mask: Attention mask, over the cached positions as well. None: nothing is padding.
            position_ids: Position ids, `(4, b, t)`.
            media: Pixels and grids (see `media_of`).
            cache: The key-value cache, which is extended. None: none.
            routers: Gets the routers' logits. None: they are not kept.
            lengths: The ends of packed samples, for kernels that take them.
        """
        recorded = {} if routers is None else {"output_router_logits": True}
        outputs = self.backbone.model(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=position_ids,
            **{self._cache_argument: cache},
            use_cache=cache is not None,
            **media,
            **recorded,
            **lengths,
        )
        if routers is not None:
            routers.logits = outputs.router_logits
        return outputs

    def new_cache(self) -> Any:
        """An empty cache of keys and values, and of the states of recurrent layers."""
        from transformers import DynamicCache

        return DynamicCache(config=self.backbone.config.text_config)

    @functools.cached_property
    def _cache_argument(self) -> str:
        """How the backbone names the key-value cache: transformers renames it in 5.x, and warns of the old name."""
        return (
            "cache" if "cache" in inspect.signature(type(self.backbone.model).forward).parameters else "past_key_values"
        )

    def blocks(self) -> list[nn.Module]:
        """The transformer blocks, vision first: the units of activation checkpointing, compilation and sharding."""
        return [*self.backbone.model.visual.blocks, *self.backbone.model.language_model.layers]


def _zero_of(output: Any) -> Tensor:
    """Zero, computed from all tensors in `output`, so that their gradients are zeros instead of absent."""
    sums = [leaf.sum() for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.requires_grad]
    return torch.stack(sums).sum() * 0.0 if sums else torch.zeros(())
