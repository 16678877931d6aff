"""The language-action model as vLLM computes it: the backbone is vLLM's own, the encoders are the export's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.utils.hub import cached_file
from vllm.config import VllmConfig
from vllm.model_executor.models.module_mapping import MultiModelKeys
from vllm.model_executor.models.qwen3_vl import Qwen3VLForConditionalGeneration
from vllm.multimodal import MULTIMODAL_REGISTRY

from language_action_vllm.processor import (
    MASK,
    VALUES,
    SensorDummyInputs,
    SensorProcessingInfo,
    SensorProcessor,
)

CODE = "modeling_language_action"
"""The module of an export that has the encoders' classes."""
SENSORS_FILE = "sensors/encoders.safetensors"
"""The file of an export that has the encoders' weights."""
VISUAL = ("image", "video")
"""The backbone's own modalities: all others get the positions of text."""


@MULTIMODAL_REGISTRY.register_processor(SensorProcessor, info=SensorProcessingInfo, dummy_inputs=SensorDummyInputs)
class LanguageActionForConditionalGeneration(Qwen3VLForConditionalGeneration):
    """The backbone with the encoders that the configuration's `sensors` list.

    Args:
        vllm_config: See vLLM.
        prefix: See vLLM.

    Raises `ValueError` where the export's code may not be run.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "model") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        model_config = vllm_config.model_config
        self.folder, self.revision = model_config.model, model_config.revision
        sensors = getattr(self.config, "sensors", {})
        if sensors and not model_config.trust_remote_code:
            raise ValueError(f"{self.folder}: its encoders are code of its own; serve it with --trust-remote-code")
        self.encoders = nn.ModuleDict()
        if sensors:
            with self._mark_tower_model(vllm_config, set(sensors), targets=nn.ModuleDict):
                for name, of in sensors.items():
                    made = get_class_from_dynamic_module(f"{CODE}.{of['class']}", self.folder, revision=self.revision)
                    self.encoders[name] = made(**of["arguments"])

    def embed_multimodal(self, **kwargs: Any) -> tuple[Tensor, ...] | None:
        """See vLLM, which calls this with the items of one modality."""
        visual = super().embed_multimodal(**kwargs)
        return tuple(visual or ()) + tuple(self._sensor_embeddings(kwargs)) or None

    def _sensor_embeddings(self, given: dict[str, Any]) -> Iterator[Tensor]:
        """The embeddings `(tokens, (1 + levels) * hidden)` of each item. The vision tower also adds features to deeper
        layers; sensors have none, and add zeros there.
        """
        for name, encoder in self.encoders.items():
            if VALUES.format(name) not in given:
                continue
            for values, mask in zip(given[VALUES.format(name)], given[MASK.format(name)], strict=True):
                features, keep = encoder(values[None].float(), mask[None])
                rows = (features[0] if keep is None else features[keep]).to(self.visual.dtype)
                yield torch.cat([rows, rows.new_zeros(len(rows), self.multiscale_dim)], dim=-1)

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        """See vLLM."""
        visual = [feature for feature in mm_features if feature.modality in VISUAL]
        return super().get_mrope_input_positions(input_tokens, visual)

    def get_mm_mapping(self) -> MultiModelKeys:
        """See vLLM."""
        keys = super().get_mm_mapping()
        keys.tower_model.append("encoders.")
        return keys

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """See vLLM. Encoders' weights come among the `weights`, or else from the export's own file."""
        return super().load_weights(self._with_encoders(weights))

    def _with_encoders(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        found = False
        for name, tensor in weights:
            found |= name.startswith("encoders.")
            yield name, tensor
        if self.encoders and not found:
            file = cached_file(self.folder, SENSORS_FILE, revision=self.revision)
            for name, tensor in load_file(file).items():
                yield f"encoders.{name}", tensor
