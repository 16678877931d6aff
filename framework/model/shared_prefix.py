"""Rows in which several answers share one prompt, so that the prompt is read once for all of them.

A batch's `shared_prefix` `(b, t)` int64 is 0 on the prompt and k on the k-th answer. An answer's tokens see the prompt
and their own answer, at the positions that they would have directly behind the prompt. Their hidden states therefore
equal those of one row per answer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from framework.scene.batch import MicroBatch


def prompts_only(batch: MicroBatch) -> MicroBatch:
    """The batch without answers: its prompts, padded on the right."""
    prompt = (batch["shared_prefix"] == 0) & batch["attention_mask"].bool()
    longest = int(prompt.sum(dim=1).max())
    prompts = batch.copy()
    del prompts["shared_prefix"]
    prompts["input_ids"] = batch["input_ids"][:, :longest]
    prompts["attention_mask"] = prompt[:, :longest].long()
    prompts["mm_token_type_ids"] = batch["mm_token_type_ids"][:, :longest]
    return prompts


def shared_prefix_position_ids(prompt_ids: Tensor, shared_prefix: Tensor, mask: Tensor) -> Tensor:
    """Position ids `(4, b, t)` of whole rows; 0 on padding.

    Every answer continues after its prompt's last running position, and after the largest of its multimodal ones.

    Args:
        prompt_ids: Position ids of the prompts alone, `(4, b, p)`.
        shared_prefix: The answer that each position belongs to, 0 on the prompt, `(b, t)`.
        mask: Attention mask, `(b, t)`, 0 on padding.
    """
    real = ((shared_prefix == 0) & mask.bool())[:, : prompt_ids.shape[2]]
    last = torch.where(real, prompt_ids, 0).amax(dim=2)
    last = torch.cat([last[:1], last[1:].amax(dim=0).expand(3, -1)])
    position_ids = prompt_ids.new_zeros(4, *shared_prefix.shape)
    position_ids[..., : prompt_ids.shape[2]] = torch.where(real, prompt_ids, 0)
    answers = last[..., None] + 1 + answer_offsets(shared_prefix)
    return torch.where((shared_prefix > 0) & mask.bool(), answers, position_ids)


def answer_offsets(shared_prefix: Tensor) -> Tensor:
    """The distance `(b, t)` of each position from the first of its prompt or answer."""
    index = torch.arange(shared_prefix.shape[1], device=shared_prefix.device).expand_as(shared_prefix)
    starts = torch.ones_like(shared_prefix, dtype=torch.bool)
    starts[:, 1:] = shared_prefix[:, 1:] != shared_prefix[:, :-1]
    return index - torch.where(starts, index, 0).cummax(dim=1).values


def shared_prefix_mask(shared_prefix: Tensor, mask: Tensor) -> Tensor:
    """The attention mask `(b, t, t)` bool: whether the position in the second dimension attends to that in the third.

    Every position attends to itself, padding included.
    """
    length = shared_prefix.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=shared_prefix.device).tril()
    visible = (shared_prefix[:, None, :] == 0) | (shared_prefix[:, None, :] == shared_prefix[:, :, None])
    real = mask.bool()[:, None, :]
    return (causal & visible & real) | torch.eye(length, dtype=torch.bool, device=shared_prefix.device)


def answer_token_positions(shared_prefix: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The positions of the answers' `n` tokens, and the source positions whose hidden states predict them.

    Both are flat indices `(n,)` into `(b, t)`, row by row. The source of a token is the position before it; that of an
    answer's first token is the end of its prompt.
    """
    rows, columns = ((shared_prefix > 0) & mask.bool()).nonzero(as_tuple=True)
    ends = ((shared_prefix == 0) & mask.bool()).sum(dim=1) - 1
    sources = torch.where(answer_offsets(shared_prefix)[rows, columns] == 0, ends[rows], columns - 1)
    length = shared_prefix.shape[1]
    return rows * length + columns, rows * length + sources
