"""Rewards of the answer's text: whether it parses, its length, and whether its reasoning agrees with its action."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from framework.recipe.component import component
from framework.recipe.ranges import Tokens
from framework.simulation.geometry import project_onto
from framework.simulation.rewards.rollouts import RolloutBatch

CLAIMS = {
    "stop": r"stop|halt|wait|standstill|stay put|remain stationary",
    "slow down": r"slow|brak|decelerat|yield|give way|reduc\w* (?:my |the )?speed",
    "keep speed": r"(?:keep|maintain|hold)\w* (?:my |the |a )?(?:current |constant |steady )?(?:speed|pace)",
    "speed up": r"speed(?:ing)? up|accelerat|pick(?:ing)? up speed|set off|pull away",
    "turn left": r"turn(?:ing)? left",
    "turn right": r"turn(?:ing)? right",
    "pass left": r"(?:move|mov|pass|swerv|shift|nudg|chang\w* lane|steer)\w* (?:\w+ )?(?:to the )?left",
    "pass right": r"(?:move|mov|pass|swerv|shift|nudg|chang\w* lane|steer)\w* (?:\w+ )?(?:to the )?right",
}
"""{manoeuvre: the words that announce it, as a regular expression}."""
STOPPED_SPEED = 0.5
"""A plan that gets slower than this (m/s) stops."""
SPEED_CHANGE = 1.0
"""The smallest change of speed (m/s) that slows down or speeds up."""
TURN = 0.5
"""The smallest change of heading (rad) that is a turn."""
LATERAL_MOVE_M = 0.5
"""The smallest change of the offset from the route (m) that passes something."""


@component
class Format:
    """0 for an answer that parses, else -1."""

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        """See `Reward`."""
        return rollouts.parsed.to(torch.float32) - 1


@component
class Overlong:
    """DAPO's soft overlong punishment (Yu et al. 2025, arXiv 2503.14476, equation 13).

    0 up to `limit` - `buffer` tokens, then linear down to -1 at `limit`, -1 beyond. Use it as a *shaping* term; see
    `RewardSum`.

    Args:
        limit: the answer's length (tokens) from which the reward is -1: the longest that may be generated.
        buffer: the tokens below `limit` over which the reward falls.
    """

    def __init__(self, limit: Tokens, buffer: Tokens) -> None:
        if not 0 < buffer <= limit:
            raise ValueError(f"buffer: {buffer} tokens; give 1 to the limit of {limit}")
        self.limit = limit
        self.buffer = buffer

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        """See `Reward`."""
        over = (rollouts.tokens - (self.limit - self.buffer)).to(torch.float32)
        return (-over / self.buffer).clamp(-1, 0)


@component
class Agreement:
    """Agreement of reasoning and action: the fraction of announced manoeuvres that the plan carries out, minus 1.

    -1 where the reasoning announces none, 0 where the task asks for no reasoning. Announcements are matched by words
    (`CLAIMS`) in the last clause whose subject is I, we or the ego, else in the last sentence. Negations ("I do not
    stop") are not recognised.
    """

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        """See `Reward`."""
        performed = {name: mask.tolist() for name, mask in _carried_out(rollouts).items()}
        values = []
        for row, thought in enumerate(rollouts.thoughts):
            if thought is None:
                values.append(0.0)
                continue
            claims = announced(thought)
            values.append(sum(performed[claim][row] for claim in claims) / len(claims) - 1 if claims else -1.0)
        return rollouts.graded(torch.tensor(values, device=rollouts.episodes.ego.device), -1.0)


def announced(thought: str) -> list[str]:
    """The manoeuvres (keys of `CLAIMS`) that a chain of thought announces for the ego."""
    sentence = [part for part in re.split(r"[.!?](?:\s|$)", thought) if part.strip()][-1:]
    own = re.split(r"\b(?:I|we|We|ego)\b", sentence[0] if sentence else "")[-1].lower()
    return [name for name, words in CLAIMS.items() if re.search(rf"\b(?:{words})", own)]


def _carried_out(rollouts: RolloutBatch) -> dict[str, Tensor]:
    """{manoeuvre: mask `(n,)` of the plans that carry it out}."""
    ego, scenes = rollouts.episodes.ego, rollouts.episodes.scenes
    first, speed, heading = ego[:, 0, 3], ego[:, 1:, 3], ego[:, -1, 2]
    lowest, last = speed.amin(dim=1), speed[:, -1]
    _, offset, _ = project_onto(ego[..., :2], scenes.route[:, None])
    lateral = offset[:, 1:] - offset[:, :1]
    return {
        "stop": lowest < STOPPED_SPEED,
        "slow down": lowest < first - SPEED_CHANGE,
        "keep speed": (last - first).abs() <= 2 * SPEED_CHANGE,
        "speed up": last > first + SPEED_CHANGE,
        "turn left": heading > TURN,
        "turn right": heading < -TURN,
        "pass left": lateral.amax(dim=1) > LATERAL_MOVE_M,
        "pass right": lateral.amin(dim=1) < -LATERAL_MOVE_M,
    }
