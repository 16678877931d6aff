"""The language-action model: the backbone, the sensor encoders, and how their tokens come together in one sequence."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from framework.model.shared_prefix import prompts_only, shared_prefix_mask, shared_prefix_position_ids
from framework.model.weights import materialize
from framework.scene.batch import MicroBatch

if TYPE_CHECKING:
    from framework.model.backbone import Backbone
    from framework.model.encoders.base import Encoder
    from framework.model.lora import LoRA

MEDIA = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")
"""The keys of a micro-batch that go to the backbone as they are."""


def placeholder(name: str) -> str:
    """The special token that holds the place of encoder `name`: `<|lidar|>`, `<|radar|>`, `<|box|>`, `<|ego|>`,
    `<|<name>|>`.
    """
    return "<|box|>" if name == "boxes" else f"<|{name}|>"


class LanguageActionModel(nn.Module):
    """A vision-language model that also reads sensors and spells actions.

    `encoders` maps a sensor's name to a partial `framework.model.encoders.base.Encoder` that is called with `hidden=`.
    `special_tokens` are the action codec's. `processor` (the backbone's, knowing all these tokens) is what the data
    room renders conversations with. Under `torch.device("meta")` nothing is read or allocated: the model can be
    measured, not run, and `processor` is None. Unless `initialize` is set, the backbone gets no data either, until it
    is materialized and initialized: a rank then holds its share alone. Encoders and `adapters` (None: the model has
    none) are small, and have theirs at once.

    With `run_unused_encoders` set, encoders and vision tower run on nothing where a batch has nothing for them:
    data-parallel ranks must use the same parameters in the same order, or wait for each other for ever.
    """

    def __init__(
        self,
        backbone: Backbone,
        encoders: Mapping[str, Callable[..., nn.Module]] | None = None,
        special_tokens: Sequence[str] = (),
        initialize: bool = True,
        adapters: LoRA | None = None,
    ) -> None:
        super().__init__()
        encoders = encoders or {}
        skeleton = torch.get_default_device().type == "meta"
        tokens = [placeholder(name) for name in encoders] + list(special_tokens)
        self.processor: Any = None if skeleton else backbone.processor(tokens)
        self.backbone = backbone.skeleton(self.processor)
        self._init_weights = functools.partial(backbone.init_weights, processor=self.processor)
        self.encoders = nn.ModuleDict({name: make(hidden=backbone.hidden) for name, make in encoders.items()})
        if adapters is not None:
            adapters.attach(self)
        self.run_unused_encoders = False
        self.placeholder_ids: dict[str, int] = {}
        if self.processor is not None:
            ids = self.processor.tokenizer.convert_tokens_to_ids
            self.placeholder_ids = {name: ids(placeholder(name)) for name in encoders}
        if initialize and not skeleton:
            self.materialize(torch.get_default_device())
            self.init_weights()

    def materialize(self, device: torch.device) -> None:
        """Make room on `device` for this rank's share of what has no data yet, and move everything else there."""
        materialize(self, device)
        self.backbone.tie_weights()

    def init_weights(self) -> None:
        """Give this rank's share of the backbone its values: pretrained ones, or drawn from torch's seed, the same on
        every mesh.
        """
        self._init_weights(self.backbone)

    @property
    def vocabulary(self) -> int:
        """Rows of the output head: tokens and spare rows."""
        return int(self.backbone.get_output_embeddings().weight.shape[0])

    def forward(self, batch: MicroBatch, positions: Tensor | None = None) -> Tensor:
        """Hidden states after the last norm: `(b, t, d)`, or `(n, d)` at the True entries of `positions` `(b, t)`
        bool, row by row.

        Raises `ValueError` when a sensor of `batch` has no encoder or its tokens do not fit its placeholders.
        """
        embeddings, places, media = self.embed(batch), self.places(batch), media_of(batch)
        if "segments" in batch:
            hidden = self._run_packed(embeddings, places, media)
        else:
            hidden = self.run_backbone(embeddings, self._mask(batch, embeddings.dtype), places, media, cache=None)[0]
        return hidden if positions is None else hidden[positions]

    def enable_shared_prefix(self) -> None:
        """From now on the language model's attention can keep several answers to one prompt apart: sdpa in place of
        flash, whose kernels know no such mask.
        """
        config = self.backbone.model.language_model.config
        if "flash" in config._attn_implementation:
            config._attn_implementation = "sdpa"

    def head(self, hidden: Tensor) -> Tensor:
        """Logits `(..., vocabulary)` of hidden states `(..., d)`; the logits at a position predict the token after it.
        Under tensor parallelism they are a DTensor, of which each rank has its words.
        """
        return cast(Tensor, self.backbone.get_output_embeddings()(hidden))

    def embed(self, batch: MicroBatch) -> Tensor:
        """Input embeddings `(b, t, d)`: words, and each sensor's tokens in its placeholders. Images are placed by the
        backbone.
        """
        ids, sensors = batch["input_ids"], batch.get("sensors", {})
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
                    nothing = torch.zeros(1, 1, encoder.channels, device=ids.device)
                    embeddings = embeddings + _nothing_of(encoder(nothing, nothing[..., 0] > 0))
                continue
            features, keep = encoder(sensors[name]["values"], sensors[name]["mask"])
            features = features[keep]
            places = ids == self.placeholder_ids[name]
            expected = int(places.sum())
            if expected != len(features):
                raise ValueError(
                    f"sensor {name}: its encoder gave {len(features)} tokens for {len(sensors[name]['values'])} "
                    f"samples, the conversations hold {expected} placeholders {placeholder(name)}: set the same number "
                    "of tokens in data.sensors and model.encoders"
                )
            embeddings = embeddings.masked_scatter(places[..., None], features.to(embeddings.dtype))
        if self.run_unused_encoders and not media_of(batch):
            embeddings = embeddings + _nothing_of(self._see_nothing(embeddings))
        return embeddings

    def _see_nothing(self, embeddings: Tensor) -> Any:
        """The vision tower's output for the smallest picture there is, all zeros."""
        vision = self.backbone.config.vision_config
        side = vision.spatial_merge_size
        width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        grid = torch.tensor([[1, side, side]], device=embeddings.device)
        return self.backbone.model.visual(embeddings.new_zeros(side * side, width), grid)

    def places(self, batch: MicroBatch) -> Tensor:
        """Position ids `(4, b, t)`: the text's running position, then multimodal RoPE's three (time, height, width).

        The backbone computes the latter (Qwen3-VL, interleaved M-RoPE); padding on either side does not count. Every
        segment of a packed row begins anew.
        """
        if "segments" in batch:
            return self._packed_places(batch)
        if "shared_prefix" in batch:
            return shared_prefix_position_ids(
                self.places(prompts_only(batch)), batch["shared_prefix"], batch["attention_mask"]
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

    def _packed_places(self, batch: MicroBatch) -> Tensor:
        """The places that the samples have when each is a padded row, put side by side again; 0 on padding."""
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
        places = segments.new_zeros(4, rows, length)
        places[:, real] = self.places(padded)[:, padded["attention_mask"].bool()]
        return places

    def _run_packed(self, embeddings: Tensor, places: Tensor, media: Mapping[str, Tensor]) -> Tensor:
        """Hidden states `(b, t, d)` of packed rows, in which no token sees another segment.

        Given positions and no mask, transformers (4.57 and 5: `masking_utils.find_packed_sequence_indices`) begins a
        sequence wherever the text's position does not go up by one; each padding token, always at 0, is one. Its flash
        attention looks for that in a single row only (`modeling_flash_attention_utils._is_packed_sequence`).
        """
        shape = embeddings.shape
        if "flash" in self.backbone.model.language_model.config._attn_implementation:
            embeddings, places = embeddings.flatten(0, 1)[None], places.flatten(1)[:, None]
        outputs = self.run_backbone(embeddings, None, places, media, cache=None)
        return cast(Tensor, outputs[0]).view(shape)

    def _mask(self, batch: MicroBatch, dtype: torch.dtype) -> Tensor:
        """What the backbone is told of who sees whom: `(b, t)`, or `(b, 1, t, t)` where rows branch, which it then
        takes as it is. Raises `ValueError` for branches under flash attention, which knows no such mask.
        """
        if "shared_prefix" not in batch:
            return batch["attention_mask"]
        kind = self.backbone.model.language_model.config._attn_implementation
        if "flash" in kind:
            raise ValueError(
                f"model.backbone: attention {kind} cannot share a prompt among answers; call enable_shared_prefix first"
            )
        sees = shared_prefix_mask(batch["shared_prefix"], batch["attention_mask"])[:, None]
        return sees if kind == "sdpa" else torch.where(sees, 0.0, torch.finfo(dtype).min).to(dtype)

    def run_backbone(
        self, embeddings: Tensor, mask: Tensor | None, places: Tensor, media: Mapping[str, Tensor], cache: Any
    ) -> Any:
        """The backbone without its head over `embeddings` `(b, t, d)`; `mask` covers the cached positions as well;
        None: nothing is padding.
        """
        return self.backbone.model(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=places,
            past_key_values=cache,
            use_cache=cache is not None,
            **media,
        )

    def blocks(self) -> list[nn.Module]:
        """The transformer blocks, vision first: what activation checkpointing, compilation and sharding work on."""
        return [*self.backbone.model.visual.blocks, *self.backbone.model.language_model.layers]


def _nothing_of(output: Any) -> Tensor:
    """Zero, by way of everything in `output`: a part's gradients become zeros instead of being absent."""
    parts = [leaf.sum() for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.requires_grad]
    return torch.stack(parts).sum() * 0.0 if parts else torch.zeros(())


def media_of(batch: MicroBatch) -> dict[str, Tensor]:
    """Pixels and grids of a micro-batch that has them."""
    return {key: cast(Tensor, batch[key]) for key in MEDIA if batch.get(key) is not None}  # type: ignore[literal-required]
