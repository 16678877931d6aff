"""Which of a camera's images a moment shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from framework.data.sources.poses import newest
from framework.data.sources.tracks import SECOND, Nanoseconds


@dataclass(frozen=True, slots=True)
class Shutter:
    """The images of one camera at a moment: the newest and those before it, none from later."""

    frames: int
    """Images, the newest included."""
    step_s: float
    """Time between them (s)."""
    age_s: float
    """How much older than its time an image may be (s)."""

    @property
    def age_ns(self) -> int:
        """`age_s` in ns."""
        return round(self.age_s * SECOND)

    def seen(self, times: Nanoseconds, moments: Nanoseconds) -> Nanoseconds:
        """Returns the indices in `times` (ascending) of all images that `moments` `(n,)` show, each once."""
        return np.unique(np.concatenate([self.choose(times, now) for now in moments.tolist()] or [times[:0]]))

    def choose(self, times: Nanoseconds, now: int) -> Nanoseconds:
        """Returns the indices in `times` (ascending) of the images of the moment `now`, oldest first, each once."""
        wanted = now - round(self.step_s * SECOND) * np.arange(self.frames - 1, -1, -1, dtype=np.int64)
        chosen = np.unique(newest(times, wanted, self.age_ns))
        return chosen[chosen >= 0]
