"""Divides a rank's slice of a step into micro-batches, or hands it out as prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from framework.data.render.collate import SpecialIds, collate, collate_packed, without_labels
from framework.data.render.packing import pack
from framework.data.render.sample import Sample
from framework.scene.batch import MicroBatch


class Batcher(Protocol):
    """Makes batches of a rank's slice of a step."""

    for_generation: bool
    """Whether samples are rendered as prompts, up to where the assistant's answer starts."""

    def batches(self, samples: list[Sample], ids: SpecialIds) -> list[Any]:
        """Returns what the loader yields for the slice's `samples`."""
        ...

    def idle(self, batches: list[Any]) -> list[Any]:
        """Returns what the loader yields when every sample was quarantined, given an earlier slice's `batches`."""
        ...

    def count(self, batches: list[Any]) -> tuple[int, int]:
        """Returns the number of tokens in `batches` and the number of their positions, padding included."""
        ...


class MicroBatcher:
    """Divides a slice into micro-batches for training.

    Args:
        rows: Rows of a micro-batch.
        packed: Tokens of a row, which then holds as many samples as fit; None gives each sample a row of its own,
            padded to the longest of its micro-batch.

    Raises:
        ValueError: `rows` is less than 1.
    """

    for_generation = False

    def __init__(self, rows: int, packed: int | None = None) -> None:
        if rows < 1:
            raise ValueError(f"data.micro_batch: {rows}; at least 1")
        self.rows = rows
        self.packed = packed

    def batches(self, samples: list[Sample], ids: SpecialIds) -> list[MicroBatch]:
        """Returns the micro-batches. Samples of similar length share one, which keeps padding low."""
        lengths = [len(sample.rendered.input_ids) for sample in samples]
        if self.packed is None:
            order = sorted(range(len(samples)), key=lengths.__getitem__)
            return [collate([samples[i] for i in part], ids) for part in self._parts(order)]
        rows = sorted(pack(lengths, self.packed), key=lambda row: sum(lengths[i] for i in row))
        return [collate_packed([[samples[i] for i in row] for row in part], ids) for part in self._parts(rows)]

    def idle(self, batches: list[MicroBatch]) -> list[MicroBatch]:
        """Returns a micro-batch with nothing to learn."""
        return [without_labels(batches[0])]

    def count(self, batches: list[MicroBatch]) -> tuple[int, int]:
        """See `Batcher`."""
        masks = [batch["attention_mask"] for batch in batches]
        return sum(int(mask.sum()) for mask in masks), sum(mask.numel() for mask in masks)

    def _parts(self, rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
        for start in range(0, len(rows), self.rows):
            yield rows[start : start + self.rows]


class PromptBatcher:
    """Hands out a slice as prompts to be answered, in the stream's order and uncollated."""

    for_generation = True

    def batches(self, samples: list[Sample], ids: SpecialIds) -> list[Sample]:
        """Returns the samples as they are."""
        return samples

    def idle(self, batches: list[Sample]) -> list[Sample]:
        """Returns no prompt."""
        return []

    def count(self, batches: list[Sample]) -> tuple[int, int]:
        """See `Batcher`; nothing is padded."""
        tokens = sum(len(sample.rendered.input_ids) for sample in batches)
        return tokens, tokens
