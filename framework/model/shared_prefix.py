"""Rows in which several answers share one prompt: it is read once for all of them.

An answer's tokens see the prompt and their own answer, at the places that they would have if the answer stood alone
behind the prompt, so that the hidden states are those of one row for each answer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from framework.scene.batch import MicroBatch


def prompts_only(batch: MicroBatch) -> MicroBatch:
    """The batch's prompts alone, padded on the right."""
    prompt = (batch["shared_prefix"] == 0) & batch["attention_mask"].bool()
    longest = int(prompt.sum(dim=1).max())
    alone = batch.copy()
    del alone["shared_prefix"]
    alone["input_ids"] = batch["input_ids"][:, :longest]
    alone["attention_mask"] = prompt[:, :longest].long()
    alone["mm_token_type_ids"] = batch["mm_token_type_ids"][:, :longest]
    return alone


def shared_prefix_position_ids(prompts: Tensor, branches: Tensor, mask: Tensor) -> Tensor:
    """Position ids `(4, b, t)`, given those of the prompts `(4, b, p)`: every answer goes on after its prompt's last
    running position, and after the largest of its multimodal ones; 0 on padding.
    """
    real = ((branches == 0) & mask.bool())[:, : prompts.shape[2]]
    last = torch.where(real, prompts, 0).amax(dim=2)
    last = torch.cat([last[:1], last[1:].amax(dim=0).expand(3, -1)])
    places = prompts.new_zeros(4, *branches.shape)
    places[..., : prompts.shape[2]] = torch.where(real, prompts, 0)
    answers = last[..., None] + 1 + depths(branches)
    return torch.where((branches > 0) & mask.bool(), answers, places)


def depths(branches: Tensor) -> Tensor:
    """How far `(b, t)` each position is into its branch, from 0 on."""
    index = torch.arange(branches.shape[1], device=branches.device).expand_as(branches)
    begins = torch.ones_like(branches, dtype=torch.bool)
    begins[:, 1:] = branches[:, 1:] != branches[:, :-1]
    return index - torch.where(begins, index, 0).cummax(dim=1).values


def shared_prefix_mask(branches: Tensor, mask: Tensor) -> Tensor:
    """Whether `(b, t, t)` bool the position in the second dimension sees that in the third; every one sees itself."""
    length = branches.shape[1]
    before = torch.ones(length, length, dtype=torch.bool, device=branches.device).tril()
    akin = (branches[:, None, :] == 0) | (branches[:, None, :] == branches[:, :, None])
    real = mask.bool()[:, None, :]
    return (before & akin & real) | torch.eye(length, dtype=torch.bool, device=branches.device)


def answer_token_positions(branches: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Where the answers' `n` tokens are, and where the hidden states are that predict them: flat indices `(n,)` each
    into `(b, t)`, row by row.

    A token is predicted where the one before it is; the first of every answer where its prompt ends.
    """
    rows, columns = ((branches > 0) & mask.bool()).nonzero(as_tuple=True)
    ends = ((branches == 0) & mask.bool()).sum(dim=1) - 1
    before = torch.where(depths(branches)[rows, columns] == 0, ends[rows], columns - 1)
    length = branches.shape[1]
    return rows * length + columns, rows * length + before
