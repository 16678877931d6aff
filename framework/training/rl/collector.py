"""Collects the groups of a step: draws prompts, filters their groups, and resamples until there are enough."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from framework.data.render.sample import Sample
from framework.data.stream.loader import StepLoader
from framework.generation.engine import Engine
from framework.objective.group_filter import REASONS, Reason
from framework.parallel.collectives import all_gather_objects
from framework.parallel.mesh import DataRank
from framework.scene.types import SceneError
from framework.simulation.rewards.reward_sum import Rewards
from framework.simulation.rewards.rollouts import RolloutBatch
from framework.training.rl.async_rollout import AsyncRollout
from framework.training.rl.metrics import MeanMetrics, count_answers, count_group, success_of
from framework.training.rl.prompt_curriculum import PromptCurriculum
from framework.training.rl.rollout import AnsweredPrompts, Prompt, Rollout, RolloutGroup
from framework.training.rl.sampler import Sampler
from framework.training.rl.scene_buffer import SceneBuffer
from framework.training.rl.simulate import RolloutSimulator
from framework.training.rl.stage import PolicyStage

log = logging.getLogger(__name__)

MAX_DRAWS_PER_ANSWERED = 10
"""Most prompts that are drawn for one that the prompt curriculum selects."""


class Collector:
    """Collects the groups of each step from prompts of the loader.

    A step reads: `rounds` gives the prompts to answer, `add` takes the judged answers, `take` returns the groups.

    Args:
        stage: How prompts are sampled, filtered and weighted.
        engine: Answers the prompts.
        loader: Yields this rank's slice of a step's prompts, again and again.
        dp_rank: This process among those that train different samples.
        seed: Seed of the stage in this run.
    """

    def __init__(self, stage: PolicyStage, engine: Engine, loader: StepLoader, dp_rank: DataRank, seed: int) -> None:
        self.stage, self.engine, self.loader, self.dp_rank = stage, engine, loader, dp_rank
        renderer = loader.renderer
        self.metrics = MeanMetrics()
        self.sampler = Sampler(stage, engine, renderer, self.metrics, seed)
        self.async_rollout = AsyncRollout(self.sampler, loader.mixture)
        self.simulator = RolloutSimulator(stage, engine, self.sampler, renderer, self.metrics)
        self.curriculum = PromptCurriculum(stage.kind_weights, self.sampler.uniform)
        self.buffer = SceneBuffer(stage.scene_replay, self.sampler.uniform, loader)
        self._step = 0
        self.loader_steps: Iterator[list[Sample]] = iter(loader)
        self.surplus: list[RolloutGroup] = []
        """Groups that passed the filter and wait for a step."""
        self.spare: RolloutGroup | None = None
        """A group for the idle micro-batches of a rank that has nothing to train."""
        self.slices_drawn = 0
        """Slices of the loader that the step has drawn."""
        self._ready = self._answered = 0  # groups and prompts of the step over all ranks
        self._mine = self._passed = 0  # prompts of this rank, and groups that passed the filter
        self._dropped: Counter[str] = Counter()  # groups of this rank that did not, by reason

    def rounds(self, step: int) -> Iterator[tuple[Sequence[Prompt], AnsweredPrompts | None]]:
        """Yields prompts to answer, one call to the engine at a time, until all ranks together have the groups of
        `step` (collective). Prompts that were sampled asynchronously come with their answers, else with None.

        At most `stage.max_resample_factor` times as many prompts as a step has are yielded. Raises `RewardError` on all
        ranks where more answers could not be judged than the run's budget allows.
        """
        self.metrics.clear()
        self._step = step
        self.slices_drawn = self._answered = self._mine = self._passed = 0
        self._dropped.clear()
        while True:
            self._ready = self._sum(len(self.surplus))
            if self._ready >= self.loader.global_batch or not self._may_resample():
                break
            self.slices_drawn += 1
            sampled = self.async_rollout.take()
            prompts = self._draw(step) if sampled is None else [prompt for prompt, _ in sampled]
            self._answered += self._sum(len(prompts))
            self._mine += len(prompts)
            start = 0
            for batch in self.sampler.batches(prompts):
                yield batch, None if sampled is None else sampled[start : start + len(batch)]
                start += len(batch)
            self.stage.rewards.settle(self._gather)
        self.curriculum.update(self._gather)
        self.buffer.update(self._gather, step)

    def add(self, answered: AnsweredPrompts, rollouts: RolloutBatch, rewards: Rewards) -> None:
        """Adds judged answers: the groups that pass the filter to the surplus, and all answers to the metrics."""
        success = success_of(rollouts)
        count_answers(rollouts, rewards, answered, success, self.metrics)
        self.curriculum.count_answers(rollouts.scenes, success)
        judged = iter(success.tolist())
        for prompt, generations in answered:
            known = [one for one in (next(judged) for _ in generations) if not math.isnan(one)]
            self.buffer.count(prompt, sum(known), len(known), self._step)
        for group in build_groups(answered, rollouts, rewards, success):
            self.spare = group if group.rollouts else self.spare
            reason = self._why_dropped(group)
            if reason is None:
                self.surplus.append(group)
                self._passed += 1
            else:
                self._dropped[reason] += 1
            count_group(group.unshaped_rewards, reason is None, self.stage.rewards.span, self.metrics)

    def take(self, step: int) -> tuple[list[RolloutGroup], dict[str, float]]:
        """Returns this rank's groups of `step`, `global_batch` over all ranks, and the metrics of all that was sampled
        (collective).

        Where the rounds gave fewer groups, these are returned with a warning. Raises `SceneError` where there are none.
        """
        wanted = self.loader.global_batch
        if self._ready < wanted:
            self._report_shortage(step, wanted)
        mine = quota(self._gather(len(self.surplus)), wanted)[self.dp_rank.rank]
        groups, self.surplus = self.surplus[:mine], self.surplus[mine:]
        self._provide_spare(groups)
        staleness = [
            float(step - answer.version) for group in groups for rollout in group.rollouts for answer in rollout.answers
        ]
        self.metrics.add("answers/staleness", staleness)
        trained = min(self._ready, wanted)
        counts = {"rl/rounds": float(self.slices_drawn), "rl/groups": float(trained), "rl/filled": trained / wanted}
        metrics = self.metrics.over_ranks(self.dp_rank) | self.curriculum.metrics() | counts | self.metrics.times()
        return groups, metrics | self._discarded() | self.buffer.metrics(step)

    def start_async(self, step: int) -> None:
        """Starts to sample the first round of `step`, while the step before is trained."""
        self.async_rollout.start(self._draw(step), step)

    def resume_async(self, state: Sequence[Sequence[Any]], step: int) -> None:
        """Takes over the answers that another attempt sampled for `step`. Where this rank has other prompts, as after a
        change of the number of ranks, starts to sample these.
        """
        prompts = self._draw(step)
        if not self.async_rollout.resume(prompts, state):
            log.warning("step %d: the saved answers are to other prompts than this rank's, which are sampled now", step)
            self.async_rollout.start(prompts, step)

    def sample_spare(self, step: int) -> RolloutGroup:
        """Returns the spare's prompt with one new answer of the present weights, which is not judged."""
        assert self.spare is not None
        generation = self.sampler.sample_one(self.spare.prompt, step)
        return RolloutGroup(self.spare.prompt, (Rollout.of(generation, plan=None),))

    def _draw(self, step: int) -> list[Prompt]:
        prompts = [Prompt.of(sample, self.loader) for sample in next(self.loader_steps)]
        return self.buffer.fill(self.curriculum.select(prompts, step), step)

    def _may_resample(self) -> bool:
        """Whether another slice of the loader is drawn. Skipped prompts cost little, but their number is bounded."""
        factor = self.stage.max_resample_factor
        draws = factor * (1 if self.stage.kind_weights is None else MAX_DRAWS_PER_ANSWERED)
        return self.slices_drawn < draws and self._answered < factor * self.loader.global_batch

    def _why_dropped(self, group: RolloutGroup) -> Reason | None:
        if len(group.rollouts) < 2:
            return "unjudged"
        if self.stage.filter is None:
            return None
        answers = [tuple((answer.tokens, answer.path) for answer in rollout.answers) for rollout in group.rollouts]
        cut = sum(not all(answer.complete for answer in rollout.answers) for rollout in group.rollouts)
        return self.stage.filter.reason(group.unshaped_rewards, group.success, answers, cut, self.stage.rewards.span)

    def _discarded(self) -> dict[str, float]:
        """Groups that the step's rounds gave and nobody trains, over all ranks, by reason (collective). Those of scenes
        that cannot be simulated are unjudged.
        """
        dropped = self._dropped + Counter({"unjudged": self._mine - self._passed - self._dropped.total()})
        counts: Counter[str] = sum((Counter(one) for one in self._gather(dict(dropped))), Counter())
        by_reason = {f"rl/discarded/{reason}": float(counts[reason]) for reason in REASONS}
        return {"rl/discarded": float(counts.total()), **by_reason}

    def _report_shortage(self, step: int, wanted: int) -> None:
        """Raises `SceneError` where no group is ready, else warns."""
        message = f"step {step}: {self._answered} prompts gave {self._ready} of {wanted} groups that `filter` keeps"
        advice = "the policy always succeeds or always fails; give other scenes, another filter or a larger group_size"
        if not self._ready:
            raise SceneError(f"{message}: {advice}")
        log.warning("%s; it is trained on these: %s", message, advice)

    def _provide_spare(self, groups: Sequence[RolloutGroup]) -> None:
        """Gives every rank a `spare` where any has one (collective): a rank that has answered nothing since the run was
        resumed gets another's.
        """
        self.spare = self.spare or next(iter(groups), None)
        has_spare = self._gather(self.spare is not None)
        if any(has_spare) and not all(has_spare):
            source = has_spare.index(True)
            shared = self._gather(self.spare if self.dp_rank.rank == source else None)[source]
            self.spare = self.spare or shared

    def _gather(self, value: Any) -> list[Any]:
        return all_gather_objects(value, self.dp_rank.group)

    def _sum(self, count: int) -> int:
        return sum(self._gather(count))


def build_groups(
    answered: AnsweredPrompts, rollouts: RolloutBatch, rewards: Rewards, success: Tensor
) -> Iterator[RolloutGroup]:
    """Yields the group of each prompt, of the answers that every component could judge; it may be empty."""
    valid, total, unshaped = rewards.valid.tolist(), rewards.total.tolist(), rewards.unshaped.tolist()
    parts, succeeded = {name: values.tolist() for name, values in rewards.parts.items()}, success.tolist()
    row = 0
    for prompt, generations in answered:
        group = []
        for generation in generations:
            if valid[row]:
                rollout = Rollout.of(
                    generation,
                    plan=rollouts.plans[row],
                    reward=total[row],
                    unshaped_reward=unshaped[row],
                    parts={name: values[row] for name, values in parts.items()},
                    success=None if math.isnan(succeeded[row]) else succeeded[row] == 1,
                )
                group.append(rollout)
            row += 1
        yield RolloutGroup(prompt, tuple(group))


def quota(ready: Sequence[int], wanted: int) -> list[int]:
    """Returns how many groups each rank trains of those `ready` on it: `wanted` in all, as even as possible."""
    shares = list(ready)
    for _ in range(max(0, sum(ready) - wanted)):
        shares[max(range(len(shares)), key=lambda rank: (shares[rank], rank))] -= 1
    return shares
