"""Groups of answers: drawn, carried out, judged and sorted out until a step has enough of them."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from framework.data.loader import Sample, StepLoader, collate_for
from framework.data.tasks import Drive
from framework.parallel.mesh import DataRank
from framework.rollout.engine import AnswersAhead, Engine, Generation, Requests, answer_seed
from framework.rollout.rewards.reward_sum import Rewards
from framework.rollout.rewards.rollouts import Rollouts, roll_out
from framework.scene.types import SceneError
from framework.training.ahead import Ahead
from framework.training.policy_stage import PolicyStage
from framework.training.sampling_metrics import Means, count_answers, count_group, gathered
from framework.training.saved_prompts import prompt_of, prompt_state
from framework.training.scenario_sampling import ScenarioSampling

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Group:
    """The answers to one prompt that could be judged. `rewards` `(g,)`; `unshaped` `(g,)` without the parts that only
    shape; `parts` `(g,)` by name.
    """

    prompt: Sample
    answers: tuple[Generation, ...]
    rewards: Tensor
    unshaped: Tensor
    parts: dict[str, Tensor]

    def state(self, loader: StepLoader) -> dict[str, Any]:
        """As JSON; the prompt by its place in `loader`'s mixture."""
        return {
            "prompt": prompt_state(self.prompt, loader.mixture),
            "answers": [answer.state() for answer in self.answers],
            "rewards": self.rewards.tolist(),
            "unshaped": self.unshaped.tolist(),
            "parts": {name: values.tolist() for name, values in self.parts.items()},
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
        return cls(prompt, answers, rewards, unshaped, parts)


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
    was drawn `ahead` is a step's first round.
    """

    def __init__(self, stage: PolicyStage, engine: Engine, loader: StepLoader, place: DataRank, seed: int) -> None:
        if stage.ahead and not isinstance(engine, AnswersAhead):
            raise ValueError(
                f"stage.ahead: {type(engine).__name__} has no weights of its own to answer with while the model is "
                "trained; choose /training/engine: vllm, or leave ahead false"
            )
        self.stage, self.engine, self.loader, self.place, self.seed = stage, engine, loader, place, seed
        self.shares: Iterator[list[Sample]] = iter(loader)
        self.surplus: list[Group] = []
        self.spare: Group | None = None
        self.ahead = Ahead(engine, loader.mixture)
        self.scenarios = ScenarioSampling(stage.scenarios, self._draw)
        self._seconds: dict[str, float] = defaultdict(float)

    def collect(self, step: int) -> Collected:
        """The groups of `step`, `global_batch` over all ranks (collective).

        Fewer where `rounds` rounds do not give as many; raises `SceneError` where they give none, and `RewardError` on
        all ranks where more answers could not be judged than the run's budget allows.
        """
        wanted, rounds, refused, means = self.loader.split.global_batch, 0, 0, Means()
        self._seconds.clear()
        while (ready := sum(gathered(len(self.surplus), self.place))) < wanted and rounds < self.stage.rounds:
            rounds += 1
            prompts, answers = self.ahead.taken() or (self._drawn(step), None)
            for group in self._sampled(prompts, step, means, answers):
                good = self._is_good(group)
                self.surplus += [group] * good
                refused += not good
                count_group(group.unshaped, good, means)
            self.stage.rewards.settle(lambda errors: gathered(errors, self.place))
        self.scenarios.remember(lambda counts: gathered(counts, self.place))
        if not ready:
            raise SceneError(
                f"step {step}: {rounds} rounds of {wanted} prompts gave no group that `filter` keeps: the policy "
                "always succeeds or always fails; give other scenes, another filter or a larger group_size"
            )
        mine = quota([int(count) for count in gathered(len(self.surplus), self.place)], wanted)[self.place.rank]
        groups, self.surplus = self.surplus[:mine], self.surplus[mine:]
        self._provide_spare(groups)
        means.add("answers/staleness", [float(step - answer.version) for group in groups for answer in group.answers])
        counted = {"rl/rounds": float(rounds), "rl/groups": float(min(ready, wanted)), **self._timed()}
        counted["rl/discarded"] = float(sum(gathered(refused, self.place)))
        return Collected(groups, rounds, means.over_ranks(self.place) | self.scenarios.metrics() | counted)

    def _provide_spare(self, groups: Sequence[Group]) -> None:
        """See to it that every rank has a `spare` where any has `groups` (collective): a rank that answered nothing
        since the run was resumed gets another's.
        """
        self.spare = self.spare or next(iter(groups), None)
        having = gathered(self.spare is not None, self.place)
        if any(having) and not all(having):
            giver = having.index(True)
            given = gathered(self.spare if self.place.rank == giver else None, self.place)[giver]
            self.spare = self.spare or given

    def begin(self, step: int) -> None:
        """Have the first round of `step` answered from now on, while something else is done."""
        prompts = self._drawn(step)
        self.ahead.begin(prompts, self._requests(prompts, step) if prompts else None)

    def resume(self, state: Sequence[Sequence[Any]], step: int) -> None:
        """Take over what another attempt had drawn ahead for `step`. Where this rank draws other prompts, as after a
        change of the number of ranks, these are answered now.
        """
        prompts = self._drawn(step)
        known = self.ahead.read(prompts, state)
        if known is None:
            log.warning("step %d: what was drawn ahead is for other prompts than this rank's; drawn anew", step)
            known = self._asked(prompts, step) if prompts else []
        self.ahead.hold(prompts, known)

    def _drawn(self, step: int) -> list[Sample]:
        return self.scenarios.chosen(next(self.shares), step)

    def _timed(self) -> dict[str, float]:
        return {f"time/{name}_s": seconds for name, seconds in self._seconds.items()}

    def _is_good(self, group: Group) -> bool:
        if len(group.answers) < 2:
            return False
        every = torch.zeros(len(group.answers), dtype=torch.int64)
        return self.stage.filter is None or bool(self.stage.filter(group.unshaped, every)[0])

    def _sampled(
        self, prompts: list[Sample], step: int, means: Means, known: list[list[Generation]] | None
    ) -> Iterator[Group]:
        """The groups of `prompts`, a few prompts at a time; of `known` answers where there are some."""
        together = self.stage.sampled_at_once // self.stage.group_size
        for start in range(0, len(prompts), together):
            part = prompts[start : start + together]
            asked = known[start : start + together] if known is not None else None
            answers = asked or self._timed_call("generate", partial(self._asked, part, step))
            rollouts, rewards = self._timed_call("judge", lambda part=part, said=answers: self._judged(part, said))
            count_answers(rollouts, rewards, answers, means, self.scenarios)
            size = self.stage.group_size
            for row, (prompt, group) in enumerate(zip(part, answers, strict=True)):
                kept = [i for i in range(row * size, (row + 1) * size) if rewards.kept[i]]
                parts = {name: values[kept].cpu() for name, values in rewards.parts.items()}
                said = tuple(group[i - row * size] for i in kept)
                made = Group(prompt, said, rewards.total[kept].cpu(), rewards.unshaped[kept].cpu(), parts)
                self.spare = made if said else self.spare
                yield made

    def _asked(self, prompts: Sequence[Sample], step: int) -> list[list[Generation]]:
        return self.engine.generate(self._requests(prompts, step))

    def _timed_call(self, name: str, call: Any) -> Any:
        begun = time.perf_counter()
        found = call()
        self._seconds[name] += time.perf_counter() - begun
        return found

    def _requests(self, prompts: Sequence[Sample], step: int) -> Requests:
        tasks = [drive_task(self.loader, sample) for sample in prompts]
        return Requests(
            prompts=collate_for(self.loader.dataset.renderer, prompts, generation=True),
            grammars=tuple(task.grammar for task in tasks),
            seeds=tuple(self._seeds(sample, step) for sample in prompts),
            max_new_tokens=self.stage.max_new_tokens,
            temperature=self.stage.objective.temperature,
        )

    def _seeds(self, prompt: Sample, step: int) -> tuple[int, ...]:
        identity = self._identity(prompt)
        return tuple(answer_seed(self.seed, step, identity, number) for number in range(self.stage.group_size))

    def _draw(self, prompt: Sample, step: int) -> float:
        return answer_seed(self.seed, step, self._identity(prompt), -1) / 2**63

    def _identity(self, prompt: Sample) -> str:
        assert prompt.address is not None
        return f"{self.loader.mixture.sample_id(prompt.address)}@{prompt.address.turn}"

    def _judged(self, prompts: Sequence[Sample], answers: Sequence[Sequence[Generation]]) -> tuple[Rollouts, Rewards]:
        """The answers carried out, and what they are worth."""
        flat = [(prompt, answer) for prompt, group in zip(prompts, answers, strict=True) for answer in group]
        tasks = [drive_task(self.loader, prompt) for prompt, _ in flat]
        rollouts = roll_out(
            self.stage.simulator,
            [prompt.scene for prompt, _ in flat],
            [answer.text for _, answer in flat],
            [task.thought(answer.text) for task, (_, answer) in zip(tasks, flat, strict=True)],
            [len(answer.tokens) for _, answer in flat],
            [task.decode(answer.text, prompt.scene) for task, (prompt, answer) in zip(tasks, flat, strict=True)],
        )
        return rollouts, self.stage.rewards(rollouts)


def drive_task(loader: StepLoader, prompt: Sample) -> Drive:
    """The task of a prompt. Raises `ValueError` for one whose answers are no plans."""
    task = loader.mixture.tasks[prompt.task]
    if not isinstance(task, Drive):
        raise ValueError(
            f"mixture: task {prompt.task} has no plan to carry out; reinforcement learning takes drive and reason"
        )
    return task


def quota(ready: Sequence[int], wanted: int) -> list[int]:
    """How many groups each rank trains, of those that are `ready` on it: `wanted` in all, as evenly as can be."""
    shares = list(ready)
    for _ in range(max(0, sum(ready) - wanted)):
        shares[max(range(len(shares)), key=lambda rank: (shares[rank], rank))] -= 1
    return shares
