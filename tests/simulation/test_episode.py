"""Closed loop: who is asked when, what is carried out, what is refused."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from framework.scene.kinematics import unicycle_controls, unicycle_rollout
from framework.scene.types import SceneError
from framework.scene.world.generate import generate_scene
from framework.scene.world.scenarios import KINDS
from framework.simulation.closed_loop import measures_by_scene
from framework.simulation.dynamics import Bicycle, Unicycle
from framework.simulation.episode import drive, follow_plans
from framework.simulation.scenes import SceneBatch, batch_scenes
from framework.simulation.simulator import Moment, Simulator
from tests.simulation.scenes import driven, make_scene


def replay_expert(moments: Sequence[Moment], scenes: SceneBatch) -> Tensor:
    """The controls that lead from here through the rest of the expert's states."""
    return unicycle_controls(moments[-1].ego, scenes.expert[:, moments[-1].step :], scenes.dt)  # type: ignore[no-any-return]


@pytest.mark.parametrize("replan_every", [1, 4, 20])
@pytest.mark.fast_cases(1)
def test_the_experts_controls_lead_along_the_experts_way(replan_every: int) -> None:
    batch = batch_scenes([generate_scene(seed, kind, rig=None) for seed in range(3) for kind in KINDS], torch.float64)
    closed = drive(Simulator(), batch, replay_expert, 20, replan_every)
    opened = follow_plans(Simulator(), batch, batch.expert)
    torch.testing.assert_close(closed.ego[..., :3], opened.ego[..., :3], atol=1e-5, rtol=0)
    assert not closed.fault.any()


def test_the_planner_is_asked_at_its_rate_and_sees_the_past() -> None:
    asked = []

    def plan(moments: Sequence[Moment], scenes: SceneBatch) -> Tensor:
        asked.append([moment.step for moment in moments])
        controls = torch.zeros(1, 8, 2)
        controls[0, :, 0] = torch.arange(8) * float(len(asked))
        return controls

    episodes = drive(Simulator(), batch_scenes([make_scene(speed=0.0, drivable=())]), plan, 10, replan_every=4)
    assert asked == [[0], list(range(5)), list(range(9))]
    accelerations = np.diff(episodes.ego[0, :, 3].numpy()) * 4
    np.testing.assert_allclose(accelerations, [0, 1, 2, 3, 0, 2, 4, 6, 0, 3], atol=1e-5)


def test_a_plan_that_corrects_itself_needs_the_loop_closed() -> None:
    def steer_back(moments: Sequence[Moment], scenes: SceneBatch) -> Tensor:
        y, heading = moments[-1].ego[:, 1:3].unbind(dim=-1)
        controls = torch.stack([torch.zeros_like(y), -0.02 * y - 0.3 * heading], dim=-1)
        return controls[:, None].expand(-1, 20, 2)

    batch = batch_scenes([make_scene()], torch.float64)
    batch.initial[:, 1] = 2.0
    often, never = (drive(Simulator(), batch, steer_back, 20, every) for every in (1, 20))
    assert abs(float(often.ego[0, -1, 1])) < 0.5
    assert never.off_road.any()


@pytest.mark.parametrize(
    ("controls", "message"),
    [
        (torch.zeros(1, 1, 2), r"shape \(1, 1, 2\); give \(1, 2 or more, 2\)"),
        (torch.zeros(2, 5, 2), r"shape \(2, 5, 2\)"),
    ],
)
def test_plans_that_cannot_be_carried_out(controls: Tensor, message: str) -> None:
    with pytest.raises(SceneError, match=message):
        drive(Simulator(), batch_scenes([make_scene()]), lambda moments, scenes: controls, 4, replan_every=2)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_an_ego_whose_controls_are_not_finite_brakes_and_gets_the_worst_measures(wrong: float) -> None:
    controls = torch.zeros(2, 8, 2)
    controls[1, 3, 1] = wrong
    episodes = drive(Simulator(), batch_scenes([make_scene()] * 2), lambda moments, scenes: controls, 8, 8)
    assert episodes.ego[:, -1, 3].tolist() == pytest.approx([8.0, 2.0])
    assert episodes.undriven.tolist() == [False, True]
    sound, worst = measures_by_scene(episodes)
    assert sound["progress"] > 0.3
    assert (worst["progress"], worst["planning_score"], worst["collision"], worst["off_road"]) == (0.0, 0.0, 1.0, 1.0)
    assert [name for name in sound if math.isnan(sound[name])] == [name for name in worst if math.isnan(worst[name])]


@pytest.mark.guarantee("The dynamics that a recipe chooses execute plans in rewards and evaluations")
def test_plans_are_carried_out_by_the_dynamics_that_were_chosen_and_exactly_without() -> None:
    batch = batch_scenes([make_scene()] * 2, torch.float64)
    swerving = unicycle_rollout(
        batch.initial[0], torch.tensor([[0.0, 0.1], [0.0, -0.1]] * 4, dtype=torch.float64), 0.25
    )
    plans = torch.stack([batch.expert[0, :8], swerving])
    exact, within, wheel, strict = (
        follow_plans(Simulator(dynamics=one), batch, plans).ego
        for one in (None, Unicycle(), Bicycle(steering_rate=0.4), Unicycle(curvature_limit=0.02))
    )
    assert torch.equal(exact[:, 1:], plans)
    torch.testing.assert_close(within, exact, atol=1e-9, rtol=0)
    torch.testing.assert_close(wheel[0], exact[0], atol=1e-9, rtol=0)
    for limited in (wheel, strict):
        assert (limited[1, 1:, 2] - swerving[:, 2]).abs().max() > 0.05
    controls = unicycle_controls(batch.initial, plans, batch.dt)
    closed = drive(Simulator(dynamics=Bicycle(steering_rate=0.4)), batch, lambda moments, scenes: controls, 8, 8)
    assert torch.equal(closed.ego, wheel)


def test_plans_may_be_shorter_than_the_logs_but_not_longer() -> None:
    batch = batch_scenes([make_scene()], torch.float64)
    assert follow_plans(Simulator(), batch, torch.from_numpy(driven(8.0, steps=6))[None]).ego.shape == (1, 7, 4)
    with pytest.raises(SceneError, match="its log ends after 20 periods"):
        follow_plans(Simulator(), batch, torch.from_numpy(driven(8.0, steps=24))[None])
