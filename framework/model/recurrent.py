"""Rows of language models whose layers carry a state along a row (Gated DeltaNet: Yang et al. 2024, arXiv 2412.06464).

Neither attention masks nor position ids end that state. Its kernels take the ends of samples, in two forms; torch's
own operators, which run without the kernels, do not: there each sample gets a row of its own. Answers that share a
prompt always do, since each continues the state behind the prompt.
"""

from __future__ import annotations

import functools
import logging
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from framework.model.segments import Segments
from framework.scene.batch import MicroBatch

log = logging.getLogger(__name__)

KERNELS = ("causal_conv1d", "fla")
"""The packages of the convolution's kernels and of the recurrence's (flash-linear-attention)."""


class SeparateRows(NamedTuple):
    """The samples of a micro-batch of `b` rows and `t` positions as `n` right-padded rows of `l` positions."""

    places: Tensor
    """Each position's place among the `b t` of the micro-batch, `(n, l)` int64; 0 on padding."""
    mask: Tensor
    """`(n, l)` bool: False for padding."""
    kept: Tensor
    """`(n, l)` bool: whether the position's result is that of its place; of a prompt's copies only the first is."""

    def scatter(self, rows: Tensor, count: int) -> Tensor:
        """Results `(n, l, d)` at their places, `(count, d)`; 0 where nothing belongs."""
        return rows.new_zeros(count, rows.shape[-1]).index_put((self.places[self.kept],), rows[self.kept])


def kernels_installed() -> bool:
    """Whether the kernels of packed rows can run."""
    return torch.cuda.is_available() and all(find_spec(package) is not None for package in KERNELS)


@functools.cache
def tell_missing_kernels() -> None:
    """Warn once where a GPU computes packed samples in rows of their own for want of kernels."""
    if torch.cuda.is_available():
        log.warning(
            "packed samples are computed in rows of their own, with more padding than `plan` says: the packages %s are "
            "not installed",
            " and ".join(KERNELS),
        )


def separate_rows(batch: MicroBatch) -> SeparateRows:
    """A row for each sample of a packed micro-batch, or for each answer behind its prompt."""
    if "segments" in batch:
        segments = batch["segments"]
        places = [
            row * segments.shape[1] + (of_row == number).nonzero()[:, 0]
            for row, of_row in enumerate(segments)
            for number in range(1, int(of_row.max()) + 1)
        ]
        kept = [torch.ones_like(place, dtype=torch.bool) for place in places]
    else:
        places, kept = _answers(batch)
    index = nn.utils.rnn.pad_sequence(places, batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in places], batch_first=True)
    return SeparateRows(index, mask, nn.utils.rnn.pad_sequence(kept, batch_first=True))


def _answers(batch: MicroBatch) -> tuple[list[Tensor], list[Tensor]]:
    """The places of each prompt with one of its answers, and which of them are kept."""
    places, kept = [], []
    length = batch["shared_prefix"].shape[1]
    for row, (answers, mask) in enumerate(zip(batch["shared_prefix"], batch["attention_mask"].bool(), strict=True)):
        for number in range(1, max(1, int(answers.max())) + 1):
            seen = (((answers == 0) | (answers == number)) & mask).nonzero()[:, 0]
            places.append(row * length + seen)
            kept.append((answers[seen] > 0) | (number == 1))
    return places, kept


def kernel_lengths(segments: Segments) -> dict[str, Any]:
    """What the kernels of recurrence and convolution take of the ends of samples in one row."""
    bounds = segments.bounds
    numbers = torch.arange(len(bounds) - 1, device=bounds.device, dtype=torch.int32)
    total = sum(segments.lengths)
    return {
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": segments.longest,
        "max_length_k": segments.longest,
        "seq_idx": numbers.repeat_interleave(bounds.diff(), output_size=total)[None],
    }


def packed_lengths(running: Tensor) -> dict[str, Any]:
    """What the kernels of attention and recurrence take of the ends of samples in one row.

    Args:
        running: The text's running position `(1, t)`, which starts at 0 in each sample. A padding token is a sample.
    """
    starts = (running[0] == 0).nonzero()[:, 0]
    ends = torch.cat([starts, starts.new_tensor([running.shape[1]])]).int()
    longest = int(ends.diff().max())
    return {
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": longest,
        "max_length_k": longest,
        "seq_idx": ((running == 0).cumsum(dim=1) - 1).int(),
    }
