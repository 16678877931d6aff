"""The command of the framework, killed at a point of reinforcement learning.

python -m tests.training.killed_policy PHASE CALL recipe=...      PHASE: generation, reward, update or synchronisation
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from framework.__main__ import main
from framework.rollout.rewards.reward_sum import RewardSum
from framework.training.embedded_engine import EmbeddedEngine
from framework.training.module import StageModule

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


if __name__ == "__main__":
    kill_at(*PHASES[sys.argv[1]], int(sys.argv[2]))
    sys.argv[1:] = sys.argv[3:]
    sys.exit(main())
