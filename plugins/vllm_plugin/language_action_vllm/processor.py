"""Sensors as modalities of vLLM: what a request may hold, and where the prompt has its placeholders.

A request gives a sensor as `multi_modal_data={"lidar": rows}`: an array `(n, channels)` in the ego frame and SI units,
or a list of such arrays. The prompt holds the sensor's placeholder once for each array; the processor repeats it as
often as the encoder makes tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from vllm.model_executor.models.qwen3_vl import (
    Qwen3VLDummyInputsBuilder,
    Qwen3VLMultiModalDataParser,
    Qwen3VLMultiModalProcessor,
    Qwen3VLProcessingInfo,
)
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import ProcessorBatchItems
from vllm.multimodal.processing import PromptReplacement

VALUES, MASK = "{}_values", "{}_mask"
"""Names of a sensor's inputs: its rows `(n, channels)` float32, and which of them are real `(n,)` bool."""
DUMMY_ROWS = 1
"""Rows of a sensor while vLLM measures memory: next to an image of the largest size no sensor counts."""


class SensorItems(ProcessorBatchItems[np.ndarray]):
    """The rows of one sensor, an item for each array. They pass by the backbone's processor."""

    def get_processor_data(self) -> Mapping[str, object]:
        """See vLLM: nothing."""
        return {}

    def get_passthrough_data(self) -> Mapping[str, object]:
        """See vLLM: values and masks."""
        rows = [torch.from_numpy(item) for item in self.get_all()]
        return {
            VALUES.format(self.modality): rows,
            MASK.format(self.modality): [torch.ones(len(item), dtype=torch.bool) for item in rows],
        }


class SensorDataParser(Qwen3VLMultiModalDataParser):
    """Reads a request's media.

    Args:
        channels: Width of a row, by sensor.
        arguments: See vLLM.
        options: See vLLM.
    """

    def __init__(self, channels: Mapping[str, int], *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.channels = channels

    def _get_subparsers(self) -> Mapping[str, Any]:
        return {**super()._get_subparsers(), **{name: partial(self._rows, name) for name in self.channels}}

    def _rows(self, name: str, data: Any) -> SensorItems | None:
        """The items of a sensor. Raises `ValueError` for rows of another shape, none, or such that are not finite."""
        if data is None:
            return None
        given = data if isinstance(data, list | tuple) else [data]
        items = [np.ascontiguousarray(item, dtype=np.float32) for item in given]
        for item in items:
            if item.ndim != 2 or item.shape[1] != self.channels[name] or not len(item) or not np.isfinite(item).all():
                raise ValueError(
                    f"multi_modal_data.{name}: has shape {item.shape}; give finite rows (n, {self.channels[name]}), "
                    "n > 0"
                )
        return SensorItems(items, name)


class SensorProcessingInfo(Qwen3VLProcessingInfo):
    """The backbone's facts, and those of the sensors that the export's configuration lists."""

    @property
    def sensors(self) -> Mapping[str, Mapping[str, Any]]:
        """By name each sensor's `channels`, `token`, `token_id` and `tokens` (None: one a row)."""
        return getattr(self.get_hf_config(), "sensors", {})

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """See vLLM."""
        return {**super().get_supported_mm_limits(), **dict.fromkeys(self.sensors)}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        """See vLLM. A sensor's are those of the dummy inputs."""
        tokens = {name: of["tokens"] or DUMMY_ROWS for name, of in self.sensors.items()}
        return {**super().get_mm_max_tokens_per_item(seq_len, mm_counts), **tokens}

    def get_data_parser(self) -> SensorDataParser:
        """See vLLM."""
        return SensorDataParser(
            {name: of["channels"] for name, of in self.sensors.items()},
            self.get_hf_config().vision_config.spatial_merge_size,
            video_needs_metadata=True,
            expected_hidden_size=self._get_expected_hidden_size(),
            allow_missing_mm_embeddings=self.allow_missing_mm_embeddings,
        )


class SensorDummyInputs(Qwen3VLDummyInputsBuilder):
    """Inputs with which vLLM measures memory."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """See vLLM."""
        sensors = (of["token"] * mm_counts.get(name, 0) for name, of in self.info.sensors.items())
        return super().get_dummy_text(mm_counts) + "".join(sensors)

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any) -> dict[str, Any]:
        """See vLLM."""
        rows = {name: np.zeros((DUMMY_ROWS, of["channels"]), np.float32) for name, of in self.info.sensors.items()}
        dummies = {name: [zeros] * mm_counts.get(name, 0) for name, zeros in rows.items()}
        return {**super().get_dummy_mm_data(seq_len, mm_counts, mm_options), **dummies}


class SensorProcessor(Qwen3VLMultiModalProcessor):
    """The backbone's processor, next to which sensors pass."""

    info: SensorProcessingInfo

    def _get_hf_mm_text(self, mm_counts: Mapping[str, int]) -> str:
        # The backbone's processor is given pictures alone, and refuses placeholders without rows.
        return super()._get_hf_mm_text({name: mm_counts.get(name, 0) for name in ("image", "video")})

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> Mapping[str, Any]:
        fields = dict(super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs))
        for name in self.info.sensors:
            fields[VALUES.format(name)] = fields[MASK.format(name)] = MultiModalFieldConfig.batched(name)
        return fields

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        def repeated(name: str, item: int) -> list[int]:
            of = self.info.sensors[name]
            return [of["token_id"]] * (of["tokens"] or len(mm_items[name].get(item)))

        updates = list(super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs))
        for name, of in self.info.sensors.items():
            updates.append(
                PromptReplacement(modality=name, target=[of["token_id"]], replacement=partial(repeated, name))
            )
        return updates
