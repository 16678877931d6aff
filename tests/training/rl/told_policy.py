"""The command of the framework; each rank tells what its steps of reinforcement learning gave."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from framework.__main__ import main
from framework.training.rl.module import PolicyModule


def tell(file: Path) -> None:
    """Add each step's metrics to `file`."""
    train = PolicyModule.training_step

    def told(self: PolicyModule, batch: Any, batch_idx: int) -> dict[str, Any]:
        found = train(self, batch, batch_idx)
        self.read_steps()
        with file.open("a") as stream:
            stream.write(json.dumps(found["metrics"]) + "\n")
        return found

    PolicyModule.training_step = told  # type: ignore[method-assign]


def train(told: Path, words: Sequence[str]) -> int:
    """The command `python -m framework WORDS` of one rank; `told` gets a file rank-N.jsonl, a line a step."""
    tell(told / f"rank-{os.environ['RANK']}.jsonl")
    return main(words)
