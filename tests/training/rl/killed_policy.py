"""The command of the framework, killed at a point of reinforcement learning."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

import framework.__main__
from framework.simulation.rewards.reward_sum import RewardSum
from framework.training.rl.engine.embedded import EmbeddedEngine
from framework.training.stage_module import StageModule

PHASES = {
    "generation": (EmbeddedEngine, "generate"),
    "reward": (RewardSum, "__call__"),
    "update": (StageModule, "apply_gradients"),
    "synchronisation": (EmbeddedEngine, "sync"),
}


def kill_at(kind: type, name: str, call: int) -> None:
    """Have the process killed when `kind.name` has done its work for the `call`-th time."""
    works: Callable[..., Any] = getattr(kind, name)
    done = [0]

    def dies(*arguments: Any, **named: Any) -> Any:
        found = works(*arguments, **named)
        done[0] += 1
        if done[0] == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    setattr(kind, name, dies)


def main(phase: str, call: int, words: Sequence[str]) -> int:
    """Run the command `words`, killed in the `call`-th of a phase."""
    kill_at(*PHASES[phase], call)
    return framework.__main__.main(words)
