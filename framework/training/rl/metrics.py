"""What every run should log of all that was sampled, kept or not."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from framework.generation.engine import Generation
from framework.parallel.collectives import all_gather_objects
from framework.parallel.mesh import DataRank
from framework.simulation.closed_loop import episode_measures
from framework.simulation.rewards.driving import displacement
from framework.simulation.rewards.reward_sum import Rewards
from framework.simulation.rewards.rollouts import RolloutBatch
from framework.training.rl.prompt_curriculum import ScenarioSampling

NO_SPREAD = 1e-6
"""Standard deviation of a group's rewards below which its answers are worth the same."""
DRIVEN = {name: name for name in ("collision", "at_fault_collision", "off_road")} | {"comfort": "comfortable"}
"""What is told of the driving, and the measure of an episode that it is."""


class Means:
    """Values by name, merged over ranks; of names in `spread` also how they vary."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = defaultdict(list)
        self.spread: set[str] = set()

    def add(self, name: str, values: Sequence[float], spread: bool = False) -> None:
        """Count `values` under `name`; with `spread` their standard deviation and the largest are told, too."""
        self.values[name] += values
        self.spread |= {name} if spread else set()

    def over_ranks(self, dp_rank: DataRank) -> dict[str, float]:
        """Means over all ranks, `<name>_std` (of the population) and `<name>_max` (collective)."""
        every: dict[str, list[float]] = defaultdict(list)
        spread: set[str] = set()
        for values, varied in all_gather_objects((dict(self.values), self.spread), dp_rank.group):
            spread |= varied
            for name, part in values.items():
                every[name] += part
        found = {name: math.fsum(values) / len(values) for name, values in every.items() if values}
        for name in sorted(spread & set(found)):
            squares = math.fsum((value - found[name]) ** 2 for value in every[name])
            found |= {f"{name}_std": math.sqrt(squares / len(every[name])), f"{name}_max": max(every[name])}
        return found


def count_group(unshaped: Tensor, good: bool, means: Means) -> None:
    """One group, of its rewards without shaping `(g,)` and whether it was kept."""
    means.add("rl/kept", [float(good)])
    if len(unshaped) > 1:
        spread = float(unshaped.std())
        means.add("reward/std", [spread])
        means.add("rl/without_spread", [float(spread < NO_SPREAD)])


def count_answers(
    rollouts: RolloutBatch,
    rewards: Rewards,
    answers: Sequence[Sequence[Generation]],
    means: Means,
    scenarios: ScenarioSampling,
) -> None:
    """The answers to several prompts, in the order of `rollouts`. What a scene without a map cannot tell, leaving the
    road and so success, is not counted.
    """
    kept, parsed = rewards.kept.tolist(), rollouts.parsed.tolist()
    means.add("reward/mean", rewards.total[rewards.kept].tolist())
    means.add("reward/errors", [float(not one) for one in kept])
    for name, values in rewards.parts.items():
        means.add(f"reward/{name}", values[rewards.kept].tolist(), spread=True)
    every = [answer for group in answers for answer in group]
    means.add("answers/length", [float(len(answer.tokens)) for answer in every], spread=True)
    means.add("answers/cut", [float(not answer.complete) for answer in every])
    means.add("answers/unparsed", [float(not one) for one in parsed])
    means.add("answers/weight_version", [float(answer.version) for answer in every])
    succeeded, measured = success_of(rollouts).tolist(), episode_measures(rollouts.episodes)
    driven = {name: measured[measure].tolist() for name, measure in DRIVEN.items()}
    driven["ade_m"] = displacement(rollouts).tolist()
    for row, scene in enumerate(rollouts.scenes):
        if not math.isnan(succeeded[row]):
            scenarios.count(scene.kind, succeeded[row] == 1)
        means.add(f"answers/unparsed/{scene.kind}", [float(not parsed[row])])
        for name, figures in driven.items():
            if parsed[row] and not math.isnan(figures[row]):
                means.add(f"driving/{name}", [figures[row]])
                means.add(f"driving/{name}/{scene.kind}", [figures[row]])
    begun = 0
    for group in answers:
        of_group = succeeded[begun : begun + len(group)]
        if not any(map(math.isnan, of_group)):
            means.add("rl/all_succeed", [float(all(of_group))])
            means.add("rl/all_fail", [float(not any(of_group))])
        begun += len(group)


def success_of(rollouts: RolloutBatch) -> Tensor:
    """1 for a plan that neither is at fault in a collision nor leaves the road, 0 for others and for an answer that
    spells none, `(n,)`; NaN where the scene has no map.
    """
    measured = episode_measures(rollouts.episodes)
    fault, off_road = measured["at_fault_collision"], measured["off_road"]
    sound = rollouts.parsed.cpu() & (fault == 0) & (off_road == 0)
    return torch.where(off_road.isnan(), off_road, sound.to(off_road.dtype))
