"""Reinforcement learning of an action head: what is drawn is scored, kept in checkpoints, and earns more."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

import pytest
import torch

from framework.generation.engine import Generation
from framework.model.flow_head import FlowHead, Prompts
from framework.objective.advantages import MeanCentered
from framework.objective.aggregation import TokenMean
from framework.objective.policy import PolicyObjective, SampledTokens
from framework.objective.policy_loss import PPOClip
from framework.objective.token_logprobs import TokenScores
from framework.training.plans import plan_of
from framework.training.rl.policy_batch import policy_batch
from framework.training.rl.prompt_state import group_state, load_group
from framework.training.rl.rollout import RolloutGroup
from tests.training.rl.policy_setting import ANSWERS, GROUPS, Setting, collect


@pytest.fixture(scope="module")
def headed(setting: Setting) -> Iterator[Setting]:
    """The setting, whose model has an action head that plans all its tasks."""
    model, tasks = setting.model, ("drive", "reason")
    torch.manual_seed(1)
    hidden = model.backbone.config.text_config.hidden_size
    model.action_head = FlowHead(hidden=hidden, width=32, layers=1, heads=2, sample_noise=0.5, tasks=tasks)
    torch.nn.init.normal_(model.action_head.out.weight, std=0.2)
    yield setting
    model.action_head = None


@pytest.fixture(scope="module")
def planned(headed: Setting) -> list[RolloutGroup]:
    """Plans that the head drew."""
    groups = collect(headed.collector(filter=None), 0).groups
    assert len(groups) == GROUPS
    assert all(len(rollout.logprobs) == 5 and not rollout.tokens for group in groups for rollout in group.rollouts)
    return groups


@pytest.mark.slow
@pytest.mark.guarantee("Log-probabilities of an action head's steps are those that they were drawn with")
def test_the_trainer_scores_what_the_head_drew(headed: Setting, planned: list[RolloutGroup]) -> None:
    head = headed.model.action_head
    micro = policy_batch(planned, headed.loader, headed.model.vocabulary, head=head)
    with torch.no_grad():
        scored = micro.actions.score(headed.model, micro.batch, headed.stage.objective)
    torch.testing.assert_close(scored.logprobs, micro.engine_logprobs, atol=1e-3, rtol=1e-4)
    assert micro.samples.tolist() == [answer for answer in range(GROUPS * ANSWERS) for _ in range(5)]


@pytest.mark.slow
def test_a_group_drives_what_was_drawn_and_comes_back_from_a_checkpoint(
    headed: Setting, planned: list[RolloutGroup]
) -> None:
    group = planned[0]
    plans = [plan_of(group.prompt.task, group.prompt.scene, rollout) for rollout in group.rollouts]
    assert len({plan.states.tobytes() for plan in plans if plan is not None}) == ANSWERS
    state = json.loads(json.dumps(group_state(group, headed.loader.mixture)))
    again = load_group(state, headed.loader)
    assert again is not None
    assert again.rollouts == group.rollouts
    for rollout, plan in zip(again.rollouts, plans, strict=True):
        assert rollout.plan is not None
        assert plan is not None
        assert (rollout.plan.states == plan.states).all()


def test_answers_in_tokens_come_back_without_a_path() -> None:
    answer = Generation((3, 4), (-1.0, -0.5), "ab", complete=True, version=2)
    assert len(answer.state()) == 5
    assert Generation.from_state(json.loads(json.dumps(answer.state()))) == answer


def test_the_reward_of_a_flow_rises() -> None:
    """Plans are paid for an acceleration of 1 m/s^2 throughout: five times as much after twelve updates."""
    torch.manual_seed(0)
    head = FlowHead(hidden=4, width=16, layers=1, heads=2, steps=2, flow_steps=4, sample_noise=0.7)
    states, count = torch.ones(3, 4), 64
    drawing, scoring = (Prompts.of([torch.arange(3)], 2, [number]).segments for number in (count, 4 * count))
    objective = PolicyObjective(MeanCentered(), PPOClip(0.2, 0.2), TokenMean())
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2, weight_decay=0.0)
    samples, earned = torch.arange(count).repeat_interleave(4), []
    for _ in range(12):
        noise = torch.randn(5, count, 2, 2)
        with torch.no_grad():
            drawn = head.draw(head.memory(states, drawing), noise[0], noise[1:])
        rewards = -(head.driven(drawn.states[:, -1])[..., 0] - 1.0).square().mean(dim=1)
        earned.append(float(rewards.mean()))
        advantages = objective.advantages(rewards, torch.zeros(count, dtype=torch.int64))  # type: ignore[call-arg, arg-type]
        tokens = SampledTokens(samples, advantages, engine_logprobs=drawn.logprobs.flatten())
        for _ in range(4):
            logprobs = head.path_logprobs(head.memory(states, scoring), drawn.states).flatten()
            scores = TokenScores(logprobs, torch.zeros_like(logprobs))
            given = dataclasses.replace(tokens, old_logprobs=drawn.logprobs.flatten())
            (objective(scores, given).total / len(samples)).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert earned[-1] > earned[0] / 2.5
    assert max(earned[-3:]) < 0
