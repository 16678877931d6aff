"""Which of several servers answers a prompt: the one that has its prefix cached, unless it is the busier one."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

SLACK = 1.25
"""Largest load of a server, as a multiple of the mean."""


def assign(prompts: Sequence[str], costs: Sequence[int], loads: Mapping[str, int]) -> list[str]:
    """Returns the server of each prompt, by consistent hashing with bounded loads (Mirrokni et al. 2018, arXiv
    1608.01350): the same prompt goes to the same server while that has room, and where one is lost only its own
    prompts move.

    Args:
        prompts: Names of the prompts; equal ones share a prefix.
        costs: Answers to each prompt.
        loads: Answers that each server has to give already, by its name.
    """
    limit = max(math.ceil(SLACK * (sum(loads.values()) + sum(costs)) / len(loads)), *costs, 1)
    load, chosen = dict(loads), list[str]()
    for prompt, cost in zip(prompts, costs, strict=True):
        ranked = sorted(load, key=lambda server: _digest(prompt, server))
        least = min(load, key=lambda server: (load[server], ranked.index(server)))
        chosen.append(next((server for server in ranked if load[server] + cost <= limit), least))
        load[chosen[-1]] += cost
    return chosen


def _digest(prompt: str, server: str) -> bytes:
    return hashlib.sha256(f"{server}/{prompt}".encode()).digest()
