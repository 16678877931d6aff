"""Metrics of everything that a step samples, whether it is trained or not."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from framework.objective.diagnostics import Diagnostics
from framework.objective.group_filter import LEAST_SPREAD
from framework.parallel.collectives import all_gather_objects
from framework.parallel.mesh import DataRank
from framework.scene.check import PLAN_FAULTS
from framework.simulation.closed_loop import episode_measures
from framework.simulation.rewards.driving import displacement
from framework.simulation.rewards.reward_sum import Rewards
from framework.simulation.rewards.rollouts import RolloutBatch
from framework.training.rl.rollout import AnsweredPrompts, answers_of

BY_KIND = "reward/mean/"
"""Metrics of the reward by kind of scenario begin so."""
OVER_KINDS = "reward/over_kinds"
"""The mean of the kinds' rewards: prompt weights change the mixture of kinds, and with it the mean of all answers."""
DRIVING = {name: name for name in ("collision", "at_fault_collision", "off_road")} | {"comfort": "comfortable"}
"""Metrics of the driving, by the episode measure that each reports."""


class MeanMetrics:
    """Collects values by metric name, and averages them over ranks at the end of the step. Also times the step's
    phases.
    """

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = defaultdict(list)
        self.spread: set[str] = set()
        self.seconds: dict[str, float] = defaultdict(float)

    def clear(self) -> None:
        """Starts a step without values."""
        self.values.clear()
        self.spread.clear()
        self.seconds.clear()

    def add(self, name: str, values: Sequence[float], spread: bool = False) -> None:
        """Adds `values` to metric `name`; with `spread` the metric also has a standard deviation and a maximum."""
        self.values[name] += values
        self.spread |= {name} if spread else set()

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Adds the seconds of the body to `phase`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - start

    def times(self) -> dict[str, float]:
        """Returns this rank's seconds by metric name, `time/<phase>_s`."""
        return {f"time/{phase}_s": seconds for phase, seconds in self.seconds.items()}

    def over_ranks(self, dp_rank: DataRank) -> dict[str, float]:
        """Returns means over all ranks, `<name>_std` (of the population) and `<name>_max` (collective)."""
        every: dict[str, list[float]] = defaultdict(list)
        spread: set[str] = set()
        for values, with_spread in all_gather_objects((dict(self.values), self.spread), dp_rank.group):
            spread |= with_spread
            for name, part in values.items():
                every[name] += part
        means = {name: math.fsum(values) / len(values) for name, values in every.items() if values}
        kinds = [mean for name, mean in means.items() if name.startswith(BY_KIND)]
        means |= {OVER_KINDS: math.fsum(kinds) / len(kinds)} if kinds else {}
        for name in sorted(spread & set(means)):
            squares = math.fsum((value - means[name]) ** 2 for value in every[name])
            means |= {f"{name}_std": math.sqrt(squares / len(every[name])), f"{name}_max": max(every[name])}
        return means


class UpdateStats(NamedTuple):
    """One optimizer step of a batch, over all ranks but for the diagnostics. Tensors are on the device."""

    loss: Tensor
    """Mean loss of the minibatch, a float64 scalar."""
    gradient_norm: Tensor
    """Norm before clipping, a scalar."""
    lr: float
    """Learning rate of the step."""
    diagnostics: Diagnostics
    """The policy's update on this rank."""
    gap: Tensor
    """Gap between engine and trainer before the update, see `PolicyBatch.logprob_gap`, `(2,)`."""
    tokens: int
    """Positions that the model processed."""
    answers: int
    """Answers trained."""


def count_group(unshaped_rewards: Tensor, passed: bool, span: float, metrics: MeanMetrics) -> None:
    """Adds the metrics of one group: its rewards without shaping `(g,)`, which may differ by `span`, and whether the
    filter kept it.
    """
    metrics.add("rl/kept", [float(passed)])
    if len(unshaped_rewards) > 1:
        spread = float(unshaped_rewards.std())
        metrics.add("reward/std", [spread])
        metrics.add("rl/without_spread", [float(spread < LEAST_SPREAD)])
        metrics.add("rl/spread_of_span", [spread / span])


def count_answers(
    rollouts: RolloutBatch, rewards: Rewards, answered: AnsweredPrompts, success: Tensor, metrics: MeanMetrics
) -> None:
    """Adds the metrics of the answers to several prompts, in the order of `rollouts`; for `success` see `success_of`. A
    scene without a map cannot tell whether a plan leaves the road, nor whether it succeeds: these are not counted.
    """
    valid, parsed = rewards.valid.tolist(), rollouts.parsed.tolist()
    metrics.add("reward/mean", rewards.total[rewards.valid].tolist())
    metrics.add("reward/errors", [float(not one) for one in valid])
    for name, values in rewards.parts.items():
        metrics.add(f"reward/{name}", values[rewards.valid].tolist(), spread=True)
    generations = [answer for _, group in answered for generation in group for answer in answers_of(generation)]
    metrics.add("answers/length", [float(len(generation.logprobs)) for generation in generations], spread=True)
    metrics.add("answers/cut", [float(not generation.complete) for generation in generations])
    metrics.add("answers/unparsed", [float(not one) for one in parsed])
    for fault in PLAN_FAULTS:
        metrics.add(f"answers/fault/{fault}", [float(one == fault) for one in rollouts.faults])
    metrics.add("answers/weight_version", [float(generation.version) for generation in generations])
    succeeded, measured = success.tolist(), episode_measures(rollouts.episodes)
    driving = {name: measured[measure].tolist() for name, measure in DRIVING.items()}
    driving["ade_m"] = displacement(rollouts).tolist()
    for row, scene in enumerate(rollouts.scenes):
        metrics.add(f"answers/unparsed/{scene.kind}", [float(not parsed[row])])
        if valid[row]:
            metrics.add(f"{BY_KIND}{scene.kind}", [float(rewards.total[row])])
        for name, figures in driving.items():
            if parsed[row] and not math.isnan(figures[row]):
                metrics.add(f"driving/{name}", [figures[row]])
                metrics.add(f"driving/{name}/{scene.kind}", [figures[row]])
    start = 0
    for _, group in answered:
        of_group = succeeded[start : start + len(group)]
        if not any(map(math.isnan, of_group)):
            metrics.add("rl/all_succeed", [float(all(of_group))])
            metrics.add("rl/all_fail", [float(not any(of_group))])
        start += len(group)


def success_of(rollouts: RolloutBatch) -> Tensor:
    """Returns `(n,)`: 1 for a plan that neither is at fault in a collision nor leaves the road, 0 for other plans and
    for answers that do not parse, NaN where the scene has no map.
    """
    measured = episode_measures(rollouts.episodes)
    fault, off_road = measured["at_fault_collision"], measured["off_road"]
    sound = rollouts.parsed.cpu() & (fault == 0) & (off_road == 0)
    return torch.where(off_road.isnan(), off_road, sound.to(off_road.dtype))
