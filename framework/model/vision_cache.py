"""A cache of the vision tower's features: frames that were seen before are not encoded again.

The tower attends within a frame and knows its height and width alone, so that a frame's features depend on nothing
else. Several questions about a scene, and clips that move on, show the same frames again.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten


class VisionCache:
    """Keeps the features of the newest frames, in the place of a vision tower's `forward`.

    A clip's frame is one temporal patch, of two pictures as a rule: a clip that moves on by one picture has other
    frames, one that moves on by two shares all but the newest. Where gradients are computed, nothing is kept.

    Args:
        visual: The vision tower.
        frames: The most frames that are kept; those that were used longest ago go first.
    """

    def __init__(self, visual: Any, frames: int) -> None:
        self.frames, self.encoded, self.reused = frames, 0, 0
        self._forward = visual.forward
        self._known: OrderedDict[bytes, list[Tensor]] = OrderedDict()
        self._form: TreeSpec | None = None
        visual.forward = self

    def __call__(self, hidden_states: Tensor, grid_thw: Tensor, **options: Any) -> Any:
        """The tower's outputs of patches `(n, width)`, of media whose grids are `(media, 3)`."""
        if torch.is_grad_enabled():
            return self._forward(hidden_states, grid_thw, **options)
        single = grid_thw.clone()
        single[:, 0] = 1
        grids = single.repeat_interleave(grid_thw[:, 0], dim=0)
        patches = hidden_states.split(grids.prod(-1).tolist())
        keys = [_key(each, grid) for each, grid in zip(patches, grids.tolist(), strict=True)]
        new = {key: place for place, key in enumerate(keys) if key not in self._known}
        if new:
            places = list(new.values())
            encoded = self._forward(torch.cat([patches[place] for place in places]), grids[places], **options)
            leaves, self._form = tree_flatten(encoded)
            parts = [_split(leaf, [len(patches[place]) for place in places]) for leaf in leaves]
            self._known.update(zip(new, map(list, zip(*parts, strict=True)), strict=True))
        self.encoded += len(new)
        self.reused += len(keys) - len(new)
        assert self._form is not None  # of the call that encoded the first frame
        outputs = tree_unflatten([torch.cat(leaf) for leaf in zip(*map(self._used, keys), strict=True)], self._form)
        while len(self._known) > self.frames:
            self._known.popitem(last=False)
        return outputs

    def _used(self, key: bytes) -> list[Tensor]:
        self._known.move_to_end(key)
        return self._known[key]


def _key(patches: Tensor, grid: list[int]) -> bytes:
    content = patches.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return hashlib.blake2b(content, digest_size=16, key=repr(grid).encode()).digest()


def _split(leaf: Tensor, patches: list[int]) -> tuple[Tensor, ...]:
    """Rows of an output by frame: as many as the frame has patches, or a share of them where patches are merged."""
    total = sum(patches)
    return leaf.split([count * len(leaf) // total for count in patches])
