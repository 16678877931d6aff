"""The curves of a run's report: which of its metrics are drawn, and what they are called."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from framework.evaluation.report import Curve
from framework.run.step_output import REWARD
from framework.tracking.metrics_file import read_all_series

LOSS = "loss"
PART = "reward/"
"""Metrics of the reward's parts begin so."""
NO_PART = (REWARD, "reward/over_kinds", "reward/std", "reward/errors")
"""Metrics of the reward that are none of its parts; those by kind of scenario are none, either."""
SPREAD = ("_std", "_max")
"""Endings of a metric's standard deviation and maximum, which are not drawn."""
TITLES = {
    REWARD: ("Reward", "The mean of all answers."),
    "reward/over_kinds": (
        "Reward, all kinds alike",
        "The mean of the means by kind of scenario: which kinds are drawn more often does not count.",
    ),
    "rl/kept": ("Groups kept", "The share of groups that the filter passed."),
    "policy/entropy": ("Entropy", "Nats a token. A policy that falls to 0 explores no more."),
    "policy/reference_kl": ("Divergence from the reference", "Nats a token."),
    "policy/clip_high_share": ("Clipped above", "The share of tokens whose ratio was cut at the upper bound."),
    "policy/clip_low_share": ("Clipped below", "The share of tokens whose ratio was cut at the lower bound."),
    "policy/engine_error": ("Log-probability gap", "Nats a token between the engine that sampled and the trainer."),
    "policy/stale_share": ("Staleness", "The share of tokens that older weights sampled."),
    "answers/length": ("Answers' length", "Tokens."),
    "answers/unparsed": ("Answers without a plan", "The share of answers that did not parse."),
    "driving/at_fault_collision": ("Collisions at fault", "The share of sampled plans."),
    "driving/off_road": ("Off the road", "The share of sampled plans."),
}
"""Titles and notes of the curves of reinforcement learning, by metric, in the order of the page."""


def run_curves(metrics: Path) -> list[Curve]:
    """The curves of a run by its `metrics` file: the loss alone, or after reinforcement learning what tells how it
    went, with each part of the reward next to the reward. What never changes is left out.
    """
    series = read_all_series(metrics, lambda name: name in (LOSS, *TITLES) or _is_part(name))
    if REWARD not in series:
        return [Curve("Loss", LOSS, series[LOSS])] if LOSS in series else []
    return [curve for curve in _policy_curves(series) if len({value for _, value in curve.points}) > 1]


def _policy_curves(series: dict[str, list[tuple[int, float]]]) -> Iterator[Curve]:
    for metric, (title, note) in TITLES.items():
        if metric in series:
            yield Curve(title, metric, series[metric], note)
        if metric == REWARD:
            for part in filter(_is_part, series):
                words = part.removeprefix(PART).replace("_", " ")
                yield Curve(f"Reward: {words}", part, series[part], "A part of the reward, before its weight.")
    if LOSS in series:
        yield Curve("Loss", LOSS, series[LOSS], "The loss of a policy says little by itself.")


def _is_part(name: str) -> bool:
    return name.startswith(PART) and name not in NO_PART and name.count("/") == 1 and not name.endswith(SPREAD)
