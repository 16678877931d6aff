"""Whole episodes: every answer on the way is sampled, kept with its prompt, and credited."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from framework.data.render.sample import Rendered, Sample
from framework.data.render.tasks import Drive
from framework.generation.engine import Generation
from framework.objective.advantages import GroupDecoupled, GroupRelative, MeanCentered
from framework.scene.types import Scene, Trajectory
from framework.scene.world.generate import generate_scene
from framework.simulation.rewards.answers import Format
from framework.simulation.rewards.driving import Collision, Imitation, OffRoad, Progress
from framework.simulation.rewards.reward_sum import RewardSum
from framework.simulation.simulator import Simulator
from framework.training.rl.closed_loop import ClosedLoop, DrivenBatch, known_answers
from framework.training.rl.credit import Credit, returns_to_go, row_advantages, turn_rows
from framework.training.rl.rollout import AnsweredPrompts, Driven, Prompt, Rollout, RolloutGroup, Turn, answers_of
from tests.simulation.scenes import RATE, driven, make_scene, moving

PARTS = {"imitation": Imitation(), "collision": Collision(), "off_road": OffRoad(), "format": Format()}
REWARDS = RewardSum({**PARTS, "progress": Progress()}, {**dict.fromkeys(PARTS, 1.0), "progress": 0.5})


class Spelled:
    """Plans as text: an acceleration (m/s^2) and a curvature (1/m)."""

    grammar, instruction, tokens = None, "", ()

    def decode(self, text: str, scene: Scene) -> Trajectory | None:
        assert scene.history is not None
        try:
            acceleration, curvature = map(float, text.split())
        except ValueError:
            return None
        return Trajectory(driven(float(scene.history.states[-1, 3]), acceleration, curvature), RATE)


class Renderer:
    """The prompt is the ego's speed and how many boxes it sees."""

    def __init__(self, cameras: Sequence[str] | None = None) -> None:
        self.cameras = cameras
        self.asked: list[Scene] = []

    def ask(self, scene: Scene, name: str, task: Drive) -> Sample:
        self.asked.append(scene)
        assert scene.history is not None
        assert scene.boxes is not None
        ids = torch.tensor([round(1000 * float(scene.history.states[-1, 3])), len(scene.boxes)])
        return Sample(Rendered(ids, ids, {}), scene, name)


@dataclass
class Asked:
    """Answers each turn of each episode as `texts` say, by weights of that turn's version."""

    texts: Sequence[Sequence[str]]
    seen: list[list[tuple[int, str]]] = field(default_factory=list)

    def __call__(self, seen: Sequence[tuple[int, Prompt]], turn: int) -> list[Generation]:
        self.seen.append([(row, prompt.scene.id) for row, prompt in seen])
        return [generation(self.texts[row][turn], version=turn) for row, _ in seen]


def generation(text: str, version: int = 0) -> Generation:
    return Generation((1,) * (len(text) + 1), (0.0,) * (len(text) + 1), text, complete=True, version=version)


def drive(
    texts: Sequence[Sequence[str]],
    ask: Any = None,
    scene: Scene | None = None,
    renderer: Renderer | None = None,
    **settings: Any,
) -> tuple[DrivenBatch, Asked]:
    """Episodes of one `scene`, by default a road with a car that is parked 30 m ahead of an ego at 8 m/s."""
    scene = scene or make_scene([moving("car", 30.0, 0.0)])
    asked, renderer = Asked(texts), renderer or Renderer()
    drive_task: Any = Drive(Spelled(), instruct=False)  # type: ignore[arg-type]
    answered: AnsweredPrompts = [
        (Prompt(renderer.ask(scene, "drive", drive_task), drive_task, "p"), [generation(own[0]) for own in texts])
    ]
    loop = ClosedLoop(**{"replan_s": 1.0, "horizon_s": 5.0, **settings})
    return loop.drive(Simulator(), renderer, answered, ask or asked, REWARDS), asked  # type: ignore[arg-type]


@functools.cache
def episodes(credit: str = "episode") -> DrivenBatch:
    return drive(EPISODES, credit=credit)[0]


def group_of(batch: DrivenBatch) -> RolloutGroup:
    rewards = REWARDS(batch.rollouts)
    ((prompt, opened),) = batch.answered
    return RolloutGroup(
        prompt,
        tuple(
            Rollout.of(
                one, None, float(rewards.total[row]), parts={name: float(v[row]) for name, v in rewards.parts.items()}
            )
            for row, one in enumerate(opened)
        ),
    )


BRAKES, KEEPS, SWERVES = "-2 0", "0 0", "0 0.1"
EPISODES = [[BRAKES] * 5, [KEEPS] * 5, [KEEPS, "nothing", KEEPS, KEEPS, KEEPS], [KEEPS, SWERVES, SWERVES, KEEPS, KEEPS]]


@pytest.mark.guarantee("In closed loop every answer of an episode is sampled, kept with its prompt and trained")
def test_an_episode_ends_at_a_crash_off_the_road_and_where_an_answer_spells_no_plan() -> None:
    batch, asked = drive(EPISODES)
    ((_, opened),) = batch.answered
    turns = [[(turn.prompt.id, turn.generation.version) for turn in one.turns] for one in opened]  # type: ignore[attr-defined]
    every = [(f"p/{turn}", turn) for turn in range(1, 5)]
    assert turns == [every, every[:3], every[:1], every[:1]], "it meets the car at 3.25 s, leaves the road before 2 s"
    assert [[row for row, _ in seen] for seen in asked.seen] == [[0, 1, 2, 3], [0, 1], [0, 1], [0]]
    assert [{name for _, name in seen} for seen in asked.seen] == [{f"made@{n}"} for n in (4, 8, 12, 16)]
    underway = batch.rollouts.episodes.underway.sum(dim=1).tolist()
    assert underway[:3] == [20, 13, 8]
    assert 4 < underway[3] <= 8
    parts = REWARDS(batch.rollouts).parts
    assert parts["collision"].tolist() == [0, -1, -1, 0]
    assert parts["off_road"].tolist() == [0, 0, -1, -1]
    assert parts["format"].tolist() == [0, 0, -1, 0]
    assert batch.rollouts.faults == (None,) * 4
    assert [one.version for one in answers_of(opened[0])] == [0, 1, 2, 3, 4]
    ego = batch.rollouts.episodes.ego
    assert torch.equal(ego[1, 14], ego[1, -1]), "who has ended stays"
    plan = batch.rollouts.plans[0]
    assert plan is not None
    assert torch.equal(torch.as_tensor(plan.states), ego[0, 1:].double()), "the rewards judge what was driven"


def test_of_later_moments_only_cameras_that_prompts_show_are_drawn() -> None:
    renderer = Renderer(cameras=["front"])
    drive([[BRAKES] * 2], scene=generate_scene(3, "curve"), renderer=renderer, horizon_s=2.0)
    assert [[camera.name for camera in scene.cameras] for scene in renderer.asked] == [
        ["front", "left", "right"],
        ["front"],
    ]


def test_other_times_are_possible_and_impossible_ones_are_refused() -> None:
    batch, _ = drive([[BRAKES] * 6], replan_s=0.5, horizon_s=3.0)
    assert len(batch.answered[0][1][0].turns) == 5  # type: ignore[attr-defined]
    assert batch.rollouts.episodes.underway.shape == (1, 12)
    with pytest.raises(ValueError, match=r"replan_s: 0.3 s are 1.2 of the scenes' periods; give a multiple of 0.25 s"):
        drive([[BRAKES]], replan_s=0.3)
    with pytest.raises(ValueError, match="replan_s 2, horizon_s 1; give seconds above 0"):
        ClosedLoop(replan_s=2.0, horizon_s=1.0)
    with pytest.raises(ValueError, match="credit: all; give episode or return_to_go"):
        ClosedLoop(credit="all")  # type: ignore[arg-type]


def test_a_turn_returns_what_the_reward_changes_by_from_it_on() -> None:
    group = group_of(episodes("return_to_go"))
    for turn in (1, 2):
        until, _ = drive([own[:turn] for own in EPISODES], horizon_s=float(turn))
        rewards = REWARDS(until.rollouts).total.tolist()
        for earned, rollout in zip(rewards, group.rollouts, strict=True):
            if turn <= len(rollout.turns):
                assert rollout.turns[turn - 1].earned == pytest.approx(earned, abs=1e-5)
    assert returns_to_go(group.rollouts[2], 5)[2:] == [0.0] * 3
    crash = returns_to_go(group.rollouts[1], 5)
    assert crash[3] < -1.0, "the turn of the collision pays for it"


@pytest.mark.guarantee("Per-step credit compares a turn with the same turn of the group, ended episodes counting 0")
@pytest.mark.parametrize("advantages", [MeanCentered(), GroupRelative()])
def test_turns_are_credited_within_their_group(advantages: Any) -> None:
    group = group_of(episodes("return_to_go"))
    groups = [RolloutGroup(group.prompt, group.rollouts[:3]), RolloutGroup(group.prompt, group.rollouts[1:])]
    shared = Credit(advantages, REWARDS)(groups, lambda sums: sums)
    by_turn = Credit(advantages, REWARDS, "return_to_go")(groups, lambda sums: sums)
    zeros = torch.zeros(3, dtype=torch.int64)
    for group, whole, own in zip(groups, shared, by_turn, strict=True):
        assert whole.shape == own.shape == (3, 5)
        assert torch.equal(whole, advantages(group.rewards, zeros)[:, None].expand(3, 5))
        for turn in range(5):
            returns = torch.tensor(
                [
                    rollout.reward - [0.0, *(t.earned for t in rollout.turns)][turn]
                    if turn <= len(rollout.turns)
                    else 0.0
                    for rollout in group.rollouts
                ]
            )
            torch.testing.assert_close(own[:, turn], advantages(returns, zeros), atol=1e-5, rtol=1e-5)
        rows = turn_rows(group)
        assert [row.prompt.id for row in rows[1:]] == [t.prompt.id for r in group.rollouts for t in r.turns]
        credited = row_advantages(group, own)
        assert torch.equal(credited[0], own[:, 0])
        expected = [own[e, t + 1] for e, r in enumerate(group.rollouts) for t in range(len(r.turns))]
        assert torch.equal(torch.cat(credited[1:]), torch.stack(expected))


@pytest.mark.guarantee("GDPO normalises each part of the reward in its group, and whitens over the ranks' whole step")
@pytest.mark.parametrize("ranks", [1, 2])
def test_parts_are_normalised_in_their_group_and_their_sum_over_the_step(ranks: int) -> None:
    """Against numpy, in float64; the groups of a step lie on one rank or on two."""
    group, floor, epsilon = group_of(episodes()), 1e-2, 1e-6
    groups = [RolloutGroup(group.prompt, group.rollouts[:3]), RolloutGroup(group.prompt, group.rollouts[1:])]
    sums = []
    for one in groups:
        total = np.zeros(len(one.rollouts))
        for name, weight in REWARDS.weights.items():
            values, span = np.array([rollout.parts[name] for rollout in one.rollouts]), REWARDS.spans[name]
            total += weight * (values - values.mean()) / (max(values.std(ddof=1), floor * span) + epsilon * span)
        sums.append(total)
    every = np.concatenate(sums)
    expected = (every - every.mean()) / (every.std(ddof=1) + epsilon)
    credit, parts = (
        Credit(GroupDecoupled(epsilon, floor), REWARDS),
        [[one] for one in groups] if ranks == 2 else [groups],
    )
    moments: list[torch.Tensor] = []
    for part in parts:
        credit(part, lambda own: moments.append(own) or own)  # type: ignore[func-returns-value]
    of_step = torch.stack(moments).sum(dim=0)
    found = [own for part in parts for own in credit(part, lambda _: of_step)]
    assert all(torch.equal(own, own[:, :1].expand(-1, own.shape[1])) for own in found)
    np.testing.assert_allclose(torch.cat([own[:, 0] for own in found]).numpy(), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="return_to_go splits the whole reward over turns"):
        Credit(GroupDecoupled(), REWARDS, "return_to_go")


def test_known_answers_drive_the_same_episodes_again() -> None:
    batch = episodes()
    ((_, opened),) = batch.answered
    later = [[(turn.generation, turn.prompt.checksum) for turn in one.turns] for one in opened]  # type: ignore[attr-defined]
    again, _ = drive([[one.text] for one in opened], ask=known_answers(later))
    assert torch.equal(again.rollouts.episodes.ego, batch.rollouts.episodes.ego)
    for one, other in zip(opened, again.answered[0][1], strict=True):
        assert isinstance(one, Driven)
        assert isinstance(other, Driven)
        assert [t.prompt.checksum for t in one.turns] == [t.prompt.checksum for t in other.turns]
    fewer, _ = drive([[one.text] for one in opened], ask=known_answers([own[:1] for own in later]))
    assert [len(one.turns) for one in fewer.answered[0][1]] == [2, 2, 1, 1], "nothing is known: the episode ends"  # type: ignore[attr-defined]


def test_an_answer_without_turns_is_a_rollout_as_ever() -> None:
    one = generation("0 0")
    assert answers_of(one) == (one,)
    driven_one = Driven.of(one, (Turn(None, generation("1 0", version=3)),))  # type: ignore[arg-type]
    assert [answer.version for answer in Rollout.of(driven_one, None).answers] == [0, 3]
