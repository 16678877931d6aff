"""The command of the framework, its memory watched while it does reinforcement learning.

python -m tests.training.rl.watched_policy FILE LEAKED recipe=...      LEAKED: bytes that each step forgets to free
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from framework.__main__ import main
from framework.training.rl.module import PolicyModule

EVERY = 20
"""Steps from one look at the memory to the next."""


def live_tensors() -> int:
    """Tensors that Python can reach."""
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def resident_bytes() -> int:
    """What this process has in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def watch(file: Path, leaked: int) -> None:
    """Note the memory after every few steps, a JSON line each; each step forgets a tensor of `leaked` bytes, if any."""
    train, forgotten = PolicyModule.training_step, []

    def watched(self: PolicyModule, batch: Any, batch_idx: int) -> dict[str, Any]:
        if leaked:
            forgotten.append(torch.ones(leaked, dtype=torch.uint8))
        found = train(self, batch, batch_idx)
        step = self.trainer.global_step
        if step % EVERY == 0:
            seen = {"step": step, "tensors": live_tensors(), "bytes": resident_bytes()}
            with file.open("a") as stream:
                stream.write(json.dumps(seen) + "\n")
        return found

    PolicyModule.training_step = watched  # type: ignore[method-assign]


if __name__ == "__main__":
    watch(Path(sys.argv[1]), int(sys.argv[2]))
    sys.argv[1:] = sys.argv[3:]
    sys.exit(main())
