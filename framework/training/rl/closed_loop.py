"""Rolls out whole episodes: the policy drives in closed loop, and every answer of an episode is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from framework.data.render.chat import ChatRenderer
from framework.generation.engine import Generation
from framework.recipe.component import component
from framework.recipe.ranges import Seconds
from framework.scene.types import Scene, Trajectory
from framework.scene.world.rig import TINY_RIG, Rig
from framework.simulation.episode import record_episodes, whole_periods
from framework.simulation.observe import controls_of, observe, replan_fault, rig_of
from framework.simulation.rewards.reward_sum import Rewards
from framework.simulation.rewards.rollouts import RolloutBatch
from framework.simulation.scenes import SceneBatch, batch_scenes
from framework.simulation.simulator import Simulator, hold
from framework.training.plans import plan_of
from framework.training.rl.rollout import AnsweredPrompts, Driven, Prompt, Turn

Ask = Callable[[Sequence[tuple[int, Prompt]], int], Sequence[Generation]]
"""Answers the `(episode, prompt)` pairs of a turn, counted from 1, with a generation each. An episode is a row of the
batch.
"""
LaterAnswer = tuple[Generation, int]
"""An answer of a later turn, and the checksum of the prompt that it answered."""
Judge = Callable[[RolloutBatch], Rewards]
"""Rewards episodes."""


class DrivenBatch(NamedTuple):
    """The episodes that follow from a batch of first answers."""

    answered: AnsweredPrompts
    """The first answers, as `Driven` generations that hold the later turns."""
    rollouts: RolloutBatch
    """The episodes as rewards judge them: each plan is the trajectory that was driven, None where an answer spelled no
    plan that can be driven.
    """


@component
@dataclass(frozen=True, kw_only=True)
class ClosedLoop:
    """The policy drives each episode and samples a new plan every `replan_s`; all its answers train.

    The answers to one prompt begin as many episodes, which are a group. The rewards judge a driven episode as they
    judge a single plan. An episode ends early at a collision that the ego causes, off the road, and after an answer
    that spells no plan that can be driven: the ego brakes until that turn ends, and the episode is worth the least. The
    ego of an episode that has ended stays where it is, and answers no more.

    Each turn is a sample of its own, whose prompt is the scene as it is then; the prompt is not trained, only the
    answer. An episode of many turns therefore weighs as the aggregation weighs its answers and tokens.

    Raises `ValueError` for a number that is not above 0, and for a `replan_s` beyond `horizon_s`.
    """

    replan_s: Seconds = 1.0
    """Seconds between two plans, a multiple of the scenes' period."""
    horizon_s: Seconds = 5.0
    """Length of an episode, a multiple of the scenes' period; no longer than their logs."""
    credit: Literal["episode", "return_to_go"] = "episode"
    """What a turn is compared by with the same turn of the group's other episodes. `episode`: the reward of the whole
    episode. `return_to_go`: what the reward changes by from the turn on, 0 once an episode has ended.
    """
    rig: Rig = field(default=TINY_RIG)
    """Sensors through which later scenes of the built-in world are seen. Other scenes have no sensors later on."""

    def __post_init__(self) -> None:
        if not 0 < self.replan_s <= self.horizon_s:
            raise ValueError(
                f"stage.rollout: replan_s {self.replan_s:g}, horizon_s {self.horizon_s:g}; give seconds above 0, the "
                "time between plans no longer than the episode"
            )
        if self.credit not in ("episode", "return_to_go"):
            raise ValueError(f"stage.rollout.credit: {self.credit}; give episode or return_to_go")

    def drive(
        self, simulator: Simulator, renderer: ChatRenderer, answered: AnsweredPrompts, ask: Ask, judge: Judge
    ) -> DrivenBatch:
        """Drives the episodes that `answered` begin, each a row of one batch in their order.

        Ranks may have different numbers of turns (see `framework.parallel.sharding.unsharded`); the ranks of one
        tensor-parallel group have the same. Raises `SceneError` for a scene that cannot be driven so long, and
        `ValueError` for times that are no multiple of the scenes' period.
        """
        prompts = [prompt for prompt, generations in answered for _ in generations]
        first = [generation for _, generations in answered for generation in generations]
        scenes = batch_scenes([prompt.scene for prompt in prompts])
        every = whole_periods("stage.rollout.replan_s", self.replan_s, scenes.rate_hz)
        steps = whole_periods("stage.rollout.horizon_s", self.horizon_s, scenes.rate_hz)
        simulator.require_logs(scenes, steps)
        drive = _Drive(simulator, scenes, prompts, first, steps)
        for start in range(0, steps, every):
            if start > 0:
                rows = drive.underway()
                if not rows:
                    break
                drive.take(self._see(drive, renderer, rows), ask)
            drive.advance(min(every, steps - start))
        return drive.finish(answered, judge if self.credit == "return_to_go" else None)

    def _see(self, drive: _Drive, renderer: ChatRenderer, rows: Sequence[int]) -> list[tuple[int, Prompt]]:
        """The prompts of the next turn of the episodes `rows`: the scenes as they are now."""
        seen, shown = [], self.rig.shown(renderer.cameras)
        for row in rows:
            opening = drive.prompts[row]
            scene = observe(opening.scene, drive.moments, row, drive.scenes.rate_hz, rig_of(opening.scene, shown))
            seen.append((row, later_prompt(opening, scene, drive.turn + 1, renderer)))
        return seen


def later_prompt(opening: Prompt, scene: Scene, turn: int, renderer: ChatRenderer) -> Prompt:
    """The prompt of `turn`: it asks for a plan in `scene`, which an episode that starts with `opening` has reached."""
    asked = renderer.ask(scene, opening.sample.task, opening.task)
    without_sensors = dataclasses.replace(scene, cameras=(), lidar=None, radar=None)
    return Prompt(asked._replace(scene=without_sensors), opening.task, f"{opening.id}/{turn}")


class _Drive:
    """Episodes on their way: `n` rows, of which some have ended.

    Args:
        simulator: Carries out the plans.
        scenes: The scenes at their start.
        prompts: The first prompt of each episode.
        first: The answers to these.
        steps: Length of an episode, in periods.
    """

    def __init__(
        self,
        simulator: Simulator,
        scenes: SceneBatch,
        prompts: Sequence[Prompt],
        first: Sequence[Generation],
        steps: int,
    ) -> None:
        self.simulator, self.scenes, self.prompts, self.first, self.steps = simulator, scenes, prompts, first, steps
        self.turn = 0
        self.moments = [simulator.start(scenes)]
        self.ended = [torch.zeros_like(scenes.mapped)]  # at each moment
        self.faults: list[str | None] = [None] * len(prompts)
        self.failed = torch.zeros_like(scenes.mapped)
        self.turns: list[list[Turn]] = [[] for _ in prompts]
        self.starts = [0]  # of each turn, in periods
        self.plans: list[Trajectory | None] = [None] * len(prompts)
        self._read(list(enumerate(prompts)), first)

    def underway(self) -> list[int]:
        """The rows that have not ended."""
        return (~self.ended[-1]).nonzero().flatten().tolist()

    def take(self, seen: Sequence[tuple[int, Prompt]], ask: Ask) -> None:
        """Asks for the answers of the next turn."""
        self.turn += 1
        self.starts.append(len(self.moments) - 1)
        generations = ask(seen, self.turn)
        for (row, prompt), generation in zip(seen, generations, strict=True):
            self.turns[row].append(Turn(prompt, generation))
        self._read(seen, generations)

    def _read(self, seen: Sequence[tuple[int, Prompt]], generations: Sequence[Generation]) -> None:
        for (row, prompt), generation in zip(seen, generations, strict=True):
            self.plans[row] = plan_of(prompt.task, prompt.scene, generation)

    @torch.no_grad()
    def advance(self, periods: int) -> None:
        """Drives the plans for so many periods."""
        controls = self._controls(periods)
        for period in range(periods):
            now, ended = self.moments[-1], self.ended[-1]
            later = self.simulator.step(self.scenes, now, controls[:, period])
            over = (later.fault > 0) | later.off_road
            if period + 1 == periods:
                over = over | self.failed
            self.moments.append(hold(now, later, ended))
            self.ended.append(ended | over)

    def _controls(self, periods: int) -> Tensor:
        """`(n, periods, 2)`: those of a unicycle that follows each plan; without a plan the ego brakes."""
        now, controls = self.moments[-1], np.zeros((len(self.prompts), periods, 2))
        for row in self.underway():
            plan = self.plans[row]
            fault = None if plan is None else replan_fault(plan, periods, self.scenes.rate_hz)
            if plan is None or fault is not None:
                self.failed[row], self.faults[row], plan = True, fault, None
            controls[row] = controls_of(plan, now, row, self.scenes.dt, periods)
        return torch.from_numpy(controls).to(self.scenes.initial)

    def finish(self, answered: AnsweredPrompts, judge: Judge | None) -> DrivenBatch:
        """The episodes, in full length. With a `judge`, each turn knows what its episode had earned before it."""
        while len(self.moments) <= self.steps:
            self.moments.append(dataclasses.replace(self.moments[-1], step=len(self.moments)))
            self.ended.append(self.ended[-1])
        rollouts = self._rollouts(self.steps, self.turn)
        turns = self.turns
        if judge is not None and self.turn:
            earned = [judge(self._rollouts(start, index)).total.tolist() for index, start in enumerate(self.starts[1:])]
            turns = [
                [turn._replace(earned=earned[index][row]) for index, turn in enumerate(own)]
                for row, own in enumerate(turns)
            ]
        driven = iter([Driven.of(one, tuple(own)) for one, own in zip(self.first, turns, strict=True)])
        opened: AnsweredPrompts = [(prompt, [next(driven) for _ in generations]) for prompt, generations in answered]
        return DrivenBatch(opened, rollouts)

    def _rollouts(self, periods: int, last_turn: int) -> RolloutBatch:
        """The first `periods` of the episodes, up to and with `last_turn`, as the rewards judge them."""
        moments, ended = self.moments[: periods + 1], torch.stack(self.ended[: periods + 1], dim=1)
        episodes = dataclasses.replace(record_episodes(self.scenes, moments), underway=~ended[:, :-1])
        failed = self.failed & ended[:, -1]
        states = episodes.ego[:, 1:].cpu().double().numpy()
        rate = self.scenes.rate_hz
        answers = [
            [first, *(turn.generation for turn in own[:last_turn])]
            for first, own in zip(self.first, self.turns, strict=True)
        ]
        return RolloutBatch(
            scenes=tuple(prompt.scene for prompt in self.prompts),
            texts=tuple("\n".join(one.text for one in own) for own in answers),
            thoughts=tuple(
                prompt.task.thought(first.text) for prompt, first in zip(self.prompts, self.first, strict=True)
            ),
            tokens=torch.tensor([max(len(one.tokens) for one in own) for own in answers], device=ended.device),
            plans=tuple(
                None if fails else Trajectory(driven, rate)
                for fails, driven in zip(failed.tolist(), states, strict=True)
            ),
            faults=tuple(fault if fails else None for fails, fault in zip(failed.tolist(), self.faults, strict=True)),
            episodes=episodes,
        )


def known_answers(later: Sequence[Sequence[LaterAnswer]]) -> Ask:
    """Answers later turns as it is known; with an empty text where an episode had ended, which ends it."""

    def ask(seen: Sequence[tuple[int, Prompt]], turn: int) -> list[Generation]:
        nothing = Generation((), (), "", complete=False, version=0)
        return [later[row][turn - 1][0] if turn <= len(later[row]) else nothing for row, _ in seen]

    return ask
