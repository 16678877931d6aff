"""Groups of answers: drawn, carried out, judged and sorted out until a step has enough of them."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from framework.data.render.sample import Sample
from framework.data.stream.loader import StepLoader
from framework.generation.engine import Engine, Generation
from framework.parallel.collectives import all_gather_objects
from framework.parallel.mesh import DataRank
from framework.scene.types import SceneError
from framework.simulation.rewards.reward_sum import Rewards
from framework.simulation.rewards.rollouts import RolloutBatch
from framework.training.rl.async_rollout import Ahead
from framework.training.rl.metrics import Means, count_answers, count_group, success_of
from framework.training.rl.prompt_curriculum import ScenarioSampling
from framework.training.rl.prompt_state import prompt_of, prompt_state
from framework.training.rl.sampler import Asking, Generations
from framework.training.rl.simulate import outcomes
from framework.training.rl.stage import PolicyStage

log = logging.getLogger(__name__)

T = TypeVar("T")
MOST_PASSED_OVER = 10
"""Prompts that are drawn for one that the scenario curriculum has answered, at most."""
UNDRIVEN = "simulation"
"""What answers are counted under, beside the rewards' components, whose scene cannot be driven or decoded for."""


@dataclass(frozen=True, slots=True)
class Group:
    """The answers to one prompt that could be judged. `rewards` `(g,)`; `unshaped` `(g,)` without the parts that only
    shape; `parts` `(g,)` by name; `success` `(g,)`, 0 or 1, see `success_of`, None where the scene cannot tell.
    """

    prompt: Sample
    answers: tuple[Generation, ...]
    rewards: Tensor
    unshaped: Tensor
    parts: dict[str, Tensor]
    success: Tensor | None

    def state(self, loader: StepLoader) -> dict[str, Any]:
        """As JSON; the prompt by its place in `loader`'s mixture."""
        return {
            "prompt": prompt_state(self.prompt, loader.mixture),
            "answers": [answer.state() for answer in self.answers],
            "rewards": self.rewards.tolist(),
            "unshaped": self.unshaped.tolist(),
            "parts": {name: values.tolist() for name, values in self.parts.items()},
            "success": None if self.success is None else self.success.tolist(),
        }

    @classmethod
    def of(cls, state: dict[str, Any], loader: StepLoader) -> Group | None:
        """The group of a `state`, its prompt read again; None where `loader` has that prompt no longer."""
        prompt = prompt_of(state.get("prompt", {}), loader)
        if prompt is None:
            return None
        parts = {name: torch.tensor(values) for name, values in state["parts"].items()}
        rewards, unshaped = torch.tensor(state["rewards"]), torch.tensor(state["unshaped"])
        answers = tuple(map(Generation.of, state["answers"]))
        success = None if state.get("success") is None else torch.tensor(state["success"])
        return cls(prompt, answers, rewards, unshaped, parts, success)


@dataclass(frozen=True, slots=True)
class Collected:
    """What a step trains on this rank: its `groups`, how many shares of the loader were drawn for them, and `metrics`
    of all that was sampled, over all ranks.
    """

    groups: list[Group]
    shares: int
    metrics: dict[str, float]


class Collector:
    """Draws prompts from `loader` and has `engine` answer them. `seed` is that of the stage in this run.

    `surplus` are groups that were good and not needed yet; `spare` is one for a rank that has nothing to train; what
    was drawn `async_rollout` is a step's first round.
    """

    def __init__(self, stage: PolicyStage, engine: Engine, loader: StepLoader, dp_rank: DataRank, seed: int) -> None:
        self.asking = Asking(stage, engine, loader, seed)
        self.stage, self.engine, self.loader, self.dp_rank = stage, engine, loader, dp_rank
        self.shares: Iterator[list[Sample]] = iter(loader)
        self.surplus: list[Group] = []
        self.spare: Group | None = None
        self.ahead = Ahead(self.asking)
        self.scenarios = ScenarioSampling(stage.prompt_weights, self.asking.draw)
        self._seconds: dict[str, float] = defaultdict(float)

    def collect(self, step: int) -> Collected:
        """The groups of `step`, `global_batch` over all ranks (collective).

        Fewer, which is told, where `rounds` times as many prompts do not give as many good groups. Raises `SceneError`
        where there are none, and `RewardError` on all ranks where more answers could not be judged than the run's
        budget allows.
        """
        wanted, shares, answered, refused, means = self.loader.global_batch, 0, 0, 0, Means()
        self._seconds.clear()
        while (ready := self._summed(len(self.surplus))) < wanted and self._may_go_on(shares, answered):
            shares += 1
            prompts, answers = self.ahead.taken() or (self._drawn(step), None)
            answered += self._summed(len(prompts))
            for group in self._sampled(prompts, step, means, answers):
                good = self._is_good(group)
                refused += not good
                if good:
                    self.surplus.append(group)
                count_group(group.unshaped, good, means)
            self.stage.rewards.settle(lambda errors: all_gather_objects(errors, self.dp_rank.group))
        self.scenarios.remember(lambda counts: all_gather_objects(counts, self.dp_rank.group))
        if ready < wanted:
            self._tell_of_few(step, ready, answered)
        surplus = all_gather_objects(len(self.surplus), self.dp_rank.group)
        mine = quota([int(count) for count in surplus], wanted)[self.dp_rank.rank]
        groups, self.surplus = self.surplus[:mine], self.surplus[mine:]
        self._provide_spare(groups)
        means.add("answers/staleness", [float(step - answer.version) for group in groups for answer in group.answers])
        trained = min(ready, wanted)
        counted = {"rl/rounds": float(shares), "rl/groups": float(trained), "rl/filled": trained / wanted}
        counted |= {f"time/{name}_s": seconds for name, seconds in self._seconds.items()}
        counted["rl/discarded"] = float(self._summed(refused))
        return Collected(groups, shares, means.over_ranks(self.dp_rank) | self.scenarios.metrics() | counted)

    def _may_go_on(self, shares: int, answered: int) -> bool:
        """Whether another share of the loader is drawn: those that are passed over cost nothing, and have an end."""
        most = self.stage.max_resample_factor * (1 if self.stage.prompt_weights is None else MOST_PASSED_OVER)
        return shares < most and answered < self.stage.max_resample_factor * self.loader.global_batch

    def _tell_of_few(self, step: int, ready: int, answered: int) -> None:
        wanted = self.loader.global_batch
        said = f"step {step}: {answered} prompts gave {ready} of {wanted} groups that `filter` keeps"
        why = "the policy always succeeds or always fails; give other scenes, another filter or a larger group_size"
        if not ready:
            raise SceneError(f"{said}: {why}")
        log.warning("%s; it is trained on these: %s", said, why)

    def _summed(self, count: int) -> int:
        return sum(all_gather_objects(count, self.dp_rank.group))

    def _provide_spare(self, groups: Sequence[Group]) -> None:
        """See to it that every rank has a `spare` where any has `groups` (collective): a rank that answered nothing
        since the run was resumed gets another's.
        """
        self.spare = self.spare or next(iter(groups), None)
        having = all_gather_objects(self.spare is not None, self.dp_rank.group)
        if any(having) and not all(having):
            giver = having.index(True)
            given = all_gather_objects(self.spare if self.dp_rank.rank == giver else None, self.dp_rank.group)[giver]
            self.spare = self.spare or given

    def begin(self, step: int) -> None:
        """Have the first round of `step` answered from now on, while something else is done."""
        self.ahead.begin(self._drawn(step), step)

    def resume(self, state: Sequence[Sequence[Any]], step: int) -> None:
        """Take over what another attempt had drawn ahead for `step`. Where this rank draws other prompts, as after a
        change of the number of ranks, these are answered now.
        """
        prompts = self._drawn(step)
        if not self.ahead.resume(prompts, state):
            log.warning("step %d: what was drawn ahead is for other prompts than this rank's; drawn anew", step)
            self.ahead.begin(prompts, step)

    def again(self, step: int) -> Group:
        """`spare`'s prompt with one new answer, which is not judged."""
        assert self.spare is not None
        answer = self.asking.again(self.spare.prompt, step)
        return Group(self.spare.prompt, (answer,), torch.zeros(1), torch.zeros(1), {}, None)

    def _drawn(self, step: int) -> list[Sample]:
        return self.scenarios.chosen(next(self.shares), step)

    def _is_good(self, group: Group) -> bool:
        if len(group.answers) < 2:
            return False
        every = torch.zeros(len(group.answers), dtype=torch.int64)
        return self.stage.filter is None or bool(self.stage.filter(group.unshaped, every, group.success)[0])

    def _sampled(self, prompts: list[Sample], step: int, means: Means, known: Generations | None) -> Iterator[Group]:
        """The groups of `prompts`, a few prompts at a time; of `known` answers where there are some."""
        for start in range(0, len(prompts), self.asking.together):
            part = prompts[start : start + self.asking.together]
            if known is None:
                answers = self._timed("generate", self.asking.ask, part, step)
            else:
                answers = known[start : start + self.asking.together]
            yield from self._worth(part, answers, means)

    def _worth(self, prompts: list[Sample], answers: Generations, means: Means) -> Iterator[Group]:
        """The groups of `answers`, judged all at once; prompt by prompt where one among them has a scene that cannot
        be driven, of whose group nothing is left.
        """
        try:
            rollouts, rewards = self._timed("judge", self._judged, prompts, answers, means)
        except SceneError as error:
            if len(prompts) > 1:
                for prompt, said in zip(prompts, answers, strict=True):
                    yield from self._worth([prompt], [said], means)
                return
            self.stage.rewards.count(UNDRIVEN, prompts[0].scene.id, error, answers=len(answers[0]))
            means.add("reward/errors", [1.0] * len(answers[0]))
            yield Group(prompts[0], (), torch.zeros(0), torch.zeros(0), {}, None)
            return
        count_answers(rollouts, rewards, answers, means, self.scenarios)
        success = success_of(rollouts)
        for row, (prompt, group) in enumerate(zip(prompts, answers, strict=True)):
            made = self._group(prompt, group, rewards, success, row * self.stage.group_size)
            self.spare = made if made.answers else self.spare
            yield made

    def _group(
        self, prompt: Sample, answers: Sequence[Generation], rewards: Rewards, success: Tensor, begun: int
    ) -> Group:
        """Those of `answers` that could be judged; their `rewards` and `success` begin at `begun`."""
        kept = [begun + number for number in range(len(answers)) if rewards.kept[begun + number]]
        parts = {name: values[kept].cpu() for name, values in rewards.parts.items()}
        said = tuple(answers[place - begun] for place in kept)
        known = None if success[kept].isnan().any() else success[kept]
        return Group(prompt, said, rewards.total[kept].cpu(), rewards.unshaped[kept].cpu(), parts, known)

    def _timed(self, name: str, call: Callable[..., T], *arguments: Any) -> T:
        begun = time.perf_counter()
        found = call(*arguments)
        self._seconds[name] += time.perf_counter() - begun
        return found

    def _judged(
        self, prompts: Sequence[Sample], answers: Sequence[Sequence[Generation]], means: Means
    ) -> tuple[RolloutBatch, Rewards]:
        """The answers carried out, and what they are worth."""
        rollouts = outcomes(self.asking, prompts, answers, means)
        return rollouts, self.stage.rewards(rollouts)


def quota(ready: Sequence[int], wanted: int) -> list[int]:
    """How many groups each rank trains, of those that are `ready` on it: `wanted` in all, as evenly as can be."""
    shares = list(ready)
    for _ in range(max(0, sum(ready) - wanted)):
        shares[max(range(len(shares)), key=lambda rank: (shares[rank], rank))] -= 1
    return shares
