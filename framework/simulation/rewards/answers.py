"""Rewards for what the model says: whether it parses, how long it is, whether its reasoning agrees with its action."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from framework.simulation.geometry import project
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
"""The words by which a manoeuvre is named."""
STANDING, CHANGE, TURN, ASIDE = 0.5, 1.0, 0.5, 0.5
"""What counts: a speed as standing (m/s), a change of speed (m/s), of heading (rad), of the offset from the route
(m)."""


class Format:
    """0 for an answer that spells a plan, -1 for one that does not parse."""

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        """See `Reward`."""
        return rollouts.parsed.to(torch.float32) - 1


class Overlong:
    """DAPO's soft overlong punishment (Yu et al. 2025, arXiv 2503.14476, equation 13): 0 up to `limit` - `buffer`
    tokens, from there down by 1 over the `buffer`, -1 beyond. A *shaping* part: see `RewardSum`.
    """

    def __init__(self, limit: int, buffer: int) -> None:
        if not 0 < buffer <= limit:
            raise ValueError(f"buffer: {buffer} tokens; give 1 to the limit of {limit}")
        self.limit = limit
        self.buffer = buffer

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        """See `Reward`."""
        over = (rollouts.tokens - (self.limit - self.buffer)).to(torch.float32)
        return (-over / self.buffer).clamp(-1, 0)


class Agreement:
    """How far the reasoning agrees with the action: the share of the manoeuvres it announces that the plan carries out,
    less 1; -1 where it announces none, 0 where the task asks for no reasoning.

    What is announced is found by words (`CLAIMS`) in the last clause whose subject is I, we or the ego, or in the last
    sentence where there is none. It is a check of words, not of understanding: a denial ("I do not stop") is not seen.
    """

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        """See `Reward`."""
        held = {name: done.tolist() for name, done in _carried_out(rollouts).items()}
        values = []
        for row, thought in enumerate(rollouts.thoughts):
            if thought is None:
                values.append(0.0)
                continue
            claims = announced(thought)
            values.append(sum(held[claim][row] for claim in claims) / len(claims) - 1 if claims else -1.0)
        return rollouts.graded(torch.tensor(values, device=rollouts.episodes.ego.device), -1.0)


def announced(thought: str) -> list[str]:
    """The manoeuvres (names of `CLAIMS`) that a chain of thought says the ego will carry out."""
    sentence = [part for part in re.split(r"[.!?](?:\s|$)", thought) if part.strip()][-1:]
    own = re.split(r"\b(?:I|we|We|ego)\b", sentence[0] if sentence else "")[-1].lower()
    return [name for name, words in CLAIMS.items() if re.search(rf"\b(?:{words})", own)]


def _carried_out(rollouts: RolloutBatch) -> dict[str, Tensor]:
    """Which manoeuvres of `CLAIMS` each plan carries out, `(n,)` bool each."""
    ego, scenes = rollouts.episodes.ego, rollouts.episodes.scenes
    first, speed, heading = ego[:, 0, 3], ego[:, 1:, 3], ego[:, -1, 2]
    least, last = speed.amin(dim=1), speed[:, -1]
    _, offset, _ = project(ego[..., :2], scenes.route[:, None])
    aside = offset[:, 1:] - offset[:, :1]
    return {
        "stop": least < STANDING,
        "slow down": least < first - CHANGE,
        "keep speed": (last - first).abs() <= 2 * CHANGE,
        "speed up": last > first + CHANGE,
        "turn left": heading > TURN,
        "turn right": heading < -TURN,
        "pass left": aside.amax(dim=1) > ASIDE,
        "pass right": aside.amin(dim=1) < -ASIDE,
    }
