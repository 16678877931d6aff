"""What a step samples and trains: a prompt, the rollouts that answer it, and their group."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from framework.data.render.sample import Sample
from framework.data.render.tasks import Drive
from framework.data.stream.loader import StepLoader
from framework.generation.engine import Generation
from framework.scene.types import Scene, Trajectory


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered sample to be answered with a plan."""

    sample: Sample
    """The rendered prompt with its scene; rendered up to where the assistant's turn begins."""
    task: Drive
    """The task, which gives the grammar of the answers and decodes plans."""
    id: str
    """Identity over runs, which seeds the answers: the sample's id and the turn of the stream."""

    @classmethod
    def of(cls, sample: Sample, loader: StepLoader) -> Prompt:
        """Returns the prompt of a `sample` that `loader` yielded. Raises `ValueError` for a task without plans."""
        assert sample.address is not None
        task = loader.tasks[sample.task]
        if not isinstance(task, Drive):
            raise ValueError(
                f"mixture: the answers of task {sample.task} spell no plan; reinforcement learning takes the tasks "
                "drive and reason"
            )
        return cls(sample, task, f"{loader.mixture.sample_id(sample.address)}@{sample.address.turn}")

    @property
    def scene(self) -> Scene:
        """The scene, without raw sensors."""
        return self.sample.scene

    @property
    def checksum(self) -> int:
        """Checksum of the tokens, which changes with tasks, words and sensors."""
        return zlib.crc32(self.sample.rendered.input_ids.numpy().tobytes())

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return len(self.sample.rendered.input_ids)


class Turn(NamedTuple):
    """A later answer of an episode that the policy drives in closed loop."""

    prompt: Prompt
    """The scene as the episode had reached it."""
    generation: Generation
    """The answer, with the version of the weights that sampled it."""
    earned: float = 0.0
    """The episode's reward up to the turn; 0 where the whole episode is credited."""


@dataclass(frozen=True, slots=True)
class Driven(Generation):
    """The first answer of an episode, with those that followed."""

    turns: tuple[Turn, ...]
    """The later turns, in order; empty where the episode ended in the first."""

    @classmethod
    def of(cls, generation: Generation, turns: tuple[Turn, ...]) -> Driven:
        """Returns the first answer `generation` with the later `turns`."""
        return cls(*_fields(generation), turns, path=generation.path)


def _fields(generation: Generation) -> tuple[tuple[int, ...], tuple[float, ...], str, bool, int]:
    return generation.tokens, generation.logprobs, generation.text, generation.complete, generation.version


def answers_of(generation: Generation) -> tuple[Generation, ...]:
    """Returns the generation with the answers that followed it, in order."""
    turns = generation.turns if isinstance(generation, Driven) else ()
    return (generation, *(turn.generation for turn in turns))


AnsweredPrompts = list[tuple[Prompt, list[Generation]]]
"""Prompts with the generations that answer them, in order."""


@dataclass(frozen=True, slots=True)
class Rollout(Generation):
    """One answer with the plan that it spells and what that was worth."""

    plan: Trajectory | None = field(compare=False)
    """The plan; None where the text does not parse, or the plan cannot be driven."""
    reward: float
    """The weighted sum of all parts."""
    unshaped_reward: float
    """The reward without the parts that only shape it; dynamic sampling filters by it."""
    parts: Mapping[str, float]
    """Each reward component's value, unweighted, by name."""
    success: bool | None
    """Whether the plan neither is at fault in a collision nor leaves the road; None where the scene has no map."""
    turns: tuple[Turn, ...] = field(default=(), compare=False)
    """The later turns of an episode; empty for a single answer."""

    @property
    def answers(self) -> tuple[Generation, ...]:
        """All answers of the episode, in order."""
        return (self, *(turn.generation for turn in self.turns))

    @classmethod
    def of(
        cls,
        generation: Generation,
        plan: Trajectory | None,
        reward: float = 0.0,
        unshaped_reward: float = 0.0,
        parts: Mapping[str, float] | None = None,
        success: bool | None = None,
    ) -> Rollout:
        """Returns `generation` as a rollout; without a reward where nothing is trained on it."""
        turns = generation.turns if isinstance(generation, Driven) else ()
        return cls(
            *_fields(generation), plan, reward, unshaped_reward, parts or {}, success, turns, path=generation.path
        )


@dataclass(frozen=True, slots=True)
class RolloutGroup:
    """A prompt with its `g` rollouts: the answers that every reward component could judge. In closed loop each begins
    an episode.
    """

    prompt: Prompt
    rollouts: tuple[Rollout, ...]

    @property
    def rewards(self) -> Tensor:
        """`(g,)` float32."""
        return torch.tensor([rollout.reward for rollout in self.rollouts])

    @property
    def unshaped_rewards(self) -> Tensor:
        """`(g,)` float32, without the parts that only shape the reward."""
        return torch.tensor([rollout.unshaped_reward for rollout in self.rollouts])

    @property
    def success(self) -> Tensor | None:
        """`(g,)` 0 or 1; None where the scene has no map."""
        success = [rollout.success for rollout in self.rollouts]
        return None if None in success else torch.tensor([float(bool(one)) for one in success])

    def state(self, prompt: dict[str, Any]) -> dict[str, Any]:
        """Returns the group as JSON, with the `prompt`'s own state. Of the prompts of later turns it holds checksums
        alone: the answers, driven once more, give them.
        """
        success = self.success
        names = self.rollouts[0].parts if self.rollouts else ()
        return {
            "prompt": prompt,
            "answers": [rollout.state() for rollout in self.rollouts],
            "rewards": [rollout.reward for rollout in self.rollouts],
            "unshaped": [rollout.unshaped_reward for rollout in self.rollouts],
            "parts": {name: [rollout.parts[name] for rollout in self.rollouts] for name in names},
            "success": None if success is None else success.tolist(),
            "turns": [
                [[turn.generation.state(), turn.prompt.checksum] for turn in rollout.turns] for rollout in self.rollouts
            ],
        }

    @classmethod
    def from_state(
        cls,
        state: dict[str, Any],
        prompt: Prompt,
        generations: Sequence[Generation],
        plans: Sequence[Trajectory | None],
    ) -> RolloutGroup:
        """Returns the group of a `state` about `prompt`, with the `generations` of its answers and their `plans`."""
        success: Sequence[float | None] = state.get("success") or [None] * len(state["answers"])
        rollouts = []
        for row, generation in enumerate(generations):
            rollouts.append(
                Rollout.of(
                    generation,
                    plan=plans[row],
                    reward=state["rewards"][row],
                    unshaped_reward=state["unshaped"][row],
                    parts={name: values[row] for name, values in state["parts"].items()},
                    success=None if success[row] is None else bool(success[row]),
                )
            )
        return cls(prompt, tuple(rollouts))
