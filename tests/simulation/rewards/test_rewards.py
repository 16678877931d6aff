"""Every reward on scenes made by hand."""

from __future__ import annotations

from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from framework.evaluation.scores.closed_loop import alpagym_reward
from framework.scene.types import Scene, Trajectory
from framework.scene.world.generate import generate_scene
from framework.scene.world.scenarios import KINDS
from framework.simulation.dynamics import Bicycle, Dynamics, Unicycle
from framework.simulation.rewards.answers import Agreement, Format, Overlong, announced
from framework.simulation.rewards.benchmarks import AlpaGym, SceneScore
from framework.simulation.rewards.driving import (
    Alpamayo,
    Collision,
    Comfort,
    Imitation,
    OffRoad,
    PlanningScore,
    Progress,
    RedLight,
    SpeedLimit,
    TimeToCollision,
)
from framework.simulation.rewards.reward_sum import RewardSum
from framework.simulation.rewards.rollouts import Reward, roll_out
from framework.simulation.simulator import Simulator
from tests.fuzzing import fuzz
from tests.simulation.rewards.answered import CONE, FREE, WALL, answers, aside
from tests.simulation.scenes import RATE, driven, make_scene, moving, trajectory


def values(reward: Reward, *pairs: tuple[Scene, Trajectory | None], **how: Any) -> list[float]:
    given = reward(answers(*pairs, **how))
    assert given.isfinite().all()
    return given.tolist()  # type: ignore[no-any-return]


def test_imitation_has_alpamayos_shape() -> None:
    pairs = [(FREE, aside(metres)) for metres in (0.0, 1.5, 2.9, 3.1, 50.0)]
    assert values(Imitation(), *pairs, (FREE, None)) == pytest.approx([0.0, -0.2, -0.4 * 2.9 / 3, -1.0, -1.0, -1.0])


def test_alpamayos_reward_is_exactly_minus_one_from_three_metres_on() -> None:
    def jerky(metres: float) -> Trajectory:
        states = aside(metres).states.copy()
        states[1::2, 3] += 4.0
        return Trajectory(states, RATE)

    pairs = [(FREE, jerky(metres)) for metres in (0.5, 1.5, 2.9, 3.1, 50.0)]
    comfort = values(Comfort(), *pairs)
    assert max(comfort) < 0, "all are uncomfortable"
    near = [-0.4 * metres / 3 + 0.1 * kept for metres, kept in zip((0.5, 1.5, 2.9), comfort, strict=False)]
    assert values(Alpamayo(), *pairs, (FREE, None)) == pytest.approx([*near, -1.0, -1.0, -1.0])


def test_imitation_judges_the_plan_and_not_where_it_ends() -> None:
    assert values(Imitation(), (WALL, trajectory(8.0))) == [0.0]


def test_imitation_of_a_shorter_plan_is_over_its_own_horizon() -> None:
    assert values(Imitation(), (FREE, Trajectory(aside(1.5).states[:8], RATE))) == pytest.approx([-0.2])


def test_collision() -> None:
    pairs = [(WALL, trajectory(8.0)), (CONE, trajectory(8.0)), (FREE, trajectory(8.0)), (WALL, trajectory(4.0))]
    assert values(Collision(), *pairs, (FREE, None)) == [-1.0, -0.5, 0.0, 0.0, -1.0]


def test_off_road() -> None:
    unmapped = make_scene(drivable=())
    pairs = [(FREE, aside(3.0)), (FREE, aside(5.0)), (unmapped, aside(5.0)), (unmapped, None)]
    assert values(OffRoad(), *pairs) == [0.0, -1.0, 0.0, -1.0]


def test_time_to_collision_is_a_share_of_its_horizon() -> None:
    # In the end the front is at 43.6 m, the other's back eight metres farther: a second.
    near = make_scene([moving("car", 43.6 + 8.0 + 2.25, 0.0)])
    assert values(TimeToCollision(2.0), (near, trajectory(8.0)), (FREE, trajectory(8.0)), (WALL, trajectory(8.0))) == (
        pytest.approx([-0.5, 0.0, -1.0])
    )


def test_progress() -> None:
    assert values(Progress(), (FREE, trajectory(8.0)), (FREE, trajectory(2.0)), (FREE, None)) == pytest.approx(
        [1.0, 0.25, 0.0]
    )


def test_comfort_is_the_share_of_bounds_kept_less_one() -> None:
    harsh = trajectory(8.0, acceleration=-5.0)
    assert values(Comfort(), (FREE, trajectory(8.0)), (FREE, harsh), (FREE, None)) == pytest.approx(
        [0.0, -3 / 6, -1.0]
    )  # the braking itself, and both jerks when it ends at a standstill


def test_speed_limit() -> None:
    free = make_scene(speed_limit=None)
    pairs = [(FREE, trajectory(9.9)), (FREE, trajectory(11.0)), (FREE, trajectory(20.0)), (free, trajectory(20.0))]
    assert values(SpeedLimit(), *pairs) == pytest.approx([0.0, -1 / 2.23, -1.0, 0.0])


def test_red_light() -> None:
    red = make_scene(red_lights=np.array([[20.0, -5.0, 20.0, 5.0, 0.0, np.inf]]))
    pairs = [(red, trajectory(8.0)), (red, trajectory(2.0)), (FREE, trajectory(8.0)), (red, None)]
    assert values(RedLight(), *pairs) == [-1.0, 0.0, 0.0, -1.0]


def test_planning_score() -> None:
    assert values(PlanningScore(), (FREE, trajectory(8.0)), (WALL, trajectory(8.0)), (FREE, None)) == [1.0, 0.0, 0.0]


def test_alpagym_is_the_evaluations() -> None:
    plain = values(AlpaGym(), (FREE, trajectory(8.0)), (FREE, trajectory(4.0)), (WALL, trajectory(8.0)), (FREE, None))
    assert plain[0] == pytest.approx(alpagym_reward(1.0, False, False, 0.0), abs=1e-5)
    gaps = 4.0 * 0.25 * np.arange(1, 21)
    assert plain[1] == pytest.approx(alpagym_reward(0.5, False, False, float(np.sqrt((gaps**2).mean()))), abs=1e-5)
    assert plain[2] < -9.0
    assert plain[3] == pytest.approx(alpagym_reward(0.0, True, True, 100.0))


def test_scene_score() -> None:
    assert values(SceneScore(), (FREE, trajectory(8.0)), (WALL, trajectory(8.0)), (FREE, None)) == [1.0, 0.0, 0.0]


def test_format() -> None:
    assert values(Format(), (FREE, trajectory(8.0)), (FREE, None)) == [0.0, -1.0]


@pytest.mark.parametrize(("tokens", "value"), [(10, 0.0), (80, 0.0), (85, -0.25), (100, -1.0), (500, -1.0)])
def test_overlong_is_daposs(tokens: int, value: float) -> None:
    assert values(Overlong(limit=100, buffer=20), (FREE, trajectory(8.0)), tokens=tokens) == [value]


def test_overlong_wants_a_buffer_within_its_limit() -> None:
    with pytest.raises(ValueError, match="buffer: 30 tokens; give 1 to the limit of 20"):
        Overlong(limit=20, buffer=30)


@pytest.mark.parametrize(
    ("thought", "plan", "value"),
    [
        ("A flagger stops the traffic, so I brake to a stop.", trajectory(8.0, acceleration=-4.0), 0.0),
        ("A flagger stops the traffic, so I brake to a stop.", trajectory(8.0, acceleration=-1.0), -0.5),
        ("A flagger stops the traffic, so I brake to a stop.", trajectory(8.0), -1.0),
        ("The road ahead is clear, so I keep my speed.", trajectory(8.0), 0.0),
        ("The road ahead is clear, so I keep my speed.", trajectory(8.0, acceleration=-2.0), -1.0),
        ("The lead car brakes hard, but it is far away. I will maintain speed.", trajectory(8.0), 0.0),
        ("The crossing is clear, and I turn left.", trajectory(4.0, curvature=0.06), 0.0),
        ("The crossing is clear, and I turn left.", trajectory(4.0, curvature=-0.06), -1.0),
        ("The lane ahead is blocked, so I move to the left around it.", aside(0.0), -1.0),
        ("Nothing is to be said.", trajectory(8.0), -1.0),
        ("", trajectory(8.0), -1.0),
        (None, trajectory(8.0), 0.0),
        ("The road ahead is clear, so I keep my speed.", None, -1.0),
    ],
)
def test_agreement_of_the_reasoning_with_the_action(thought: str | None, plan: Trajectory | None, value: float) -> None:
    assert values(Agreement(), (FREE, plan), thoughts=(thought,)) == [value]


def test_agreement_sees_the_swerve() -> None:
    states = driven(8.0)
    states[:, 1] = np.interp(np.arange(20), [4, 12], [0.0, 1.8])
    said = "The lane ahead is blocked, so I move to the left around it."
    assert values(Agreement(), (FREE, Trajectory(states, RATE)), thoughts=(said,)) == [0.0]


@pytest.mark.slow
def test_experts_mean_what_they_think_and_not_what_others_do() -> None:
    scenes = [generate_scene(seed, kind, rig=None) for seed in range(8) for kind in KINDS]
    pairs = [(scene, scene.future) for scene in scenes]
    own = tuple(scene.thought for scene in scenes)
    assert all(announced(thought or "") for thought in own)
    assert np.mean(values(Agreement(), *pairs, thoughts=own)) > -0.02
    others = np.random.default_rng(0).permutation(np.array(own, dtype=object))
    assert np.mean(values(Agreement(), *pairs, thoughts=tuple(others))) < -0.3


def test_taking_answers_is_rolling_them_out_alone() -> None:
    rollouts = answers((WALL, trajectory(8.0)), (FREE, None), (CONE, aside(1.0)))
    taken = rollouts.take([2, 0])
    assert [scene.id for scene in taken.scenes] == ["made", "made"]
    assert taken.parsed.tolist() == [True, True]
    assert taken.plans == (rollouts.plans[2], rollouts.plans[0])
    assert Collision()(taken).tolist() == [Collision()(rollouts)[row].item() for row in (2, 0)]


def test_nobody_parses() -> None:
    rollouts = answers((WALL, None), (FREE, None))
    assert rollouts.parsed.tolist() == [False, False]
    everything = [
        Imitation(),
        Collision(),
        OffRoad(),
        TimeToCollision(),
        Comfort(),
        SpeedLimit(),
        RedLight(),
        Agreement(),
    ]
    assert {value for reward in everything for value in reward(rollouts).tolist()} == {-1.0}
    assert {value for reward in (Progress(), PlanningScore()) for value in reward(rollouts).tolist()} == {0.0}


@pytest.mark.parametrize(
    "plan", [Trajectory(driven(8.0), 10.0), Trajectory(driven(8.0, steps=12), RATE)], ids=["rate", "length"]
)
def test_plans_of_another_clock_are_the_worst(plan: Trajectory, caplog: pytest.LogCaptureFixture) -> None:
    rollouts = answers((FREE, trajectory(8.0)), (FREE, trajectory(8.0)), (FREE, plan))
    assert rollouts.faults == (None, None, "rate" if plan.rate_hz == 10.0 else "length")
    assert Imitation()(rollouts).tolist() == pytest.approx([0.0, 0.0, -1.0])
    assert "set the action codec's steps and rate to the data's" in caplog.text


DRIVING = (Imitation(), Alpamayo(), Collision(), OffRoad(), TimeToCollision(), Progress(), Comfort(), SpeedLimit())
WORST = (*DRIVING, Imitation(scale=4.0), Alpamayo(scale=3.0, comfort=2.0), RedLight(), PlanningScore(), Agreement())
GARBAGE = [0.0, -1.0, 3.0, 1e3, 1e30, -1e30, float("nan"), float("inf"), -float("inf")]


@pytest.mark.fault("plans that are not finite")
@pytest.mark.attack("answer", "plans with garbage from some state on", "worth no more than the worst")
@fuzz(10)
@hypothesis.given(
    column=strategies.integers(0, 3),
    value=strategies.sampled_from(GARBAGE),
    since=strategies.integers(0, 19),
    steps=strategies.sampled_from([0, 1, 12, 20, 40]),
    dynamics=strategies.sampled_from([None, Unicycle(), Bicycle()]),
)
def test_no_garbage_is_worth_more_than_the_worst_plan(
    column: int, value: float, since: int, steps: int, dynamics: Dynamics | None
) -> None:
    states = driven(8.0, steps=40)[:steps]
    states[since:, column] = value
    fine, bad = driven(8.0), driven(8.0, acceleration=4.0, curvature=0.08)
    plans = [Trajectory(one, RATE) for one in (fine, fine, bad, bad, states)]
    rollouts = roll_out(Simulator(dynamics=dynamics), [FREE] * 5, [""] * 5, [None] * 5, [1] * 5, plans)
    rewards = RewardSum({str(k): one for k, one in enumerate(WORST)}, dict.fromkeys(map(str, range(len(WORST))), 1.0))
    found = rewards(rollouts)
    assert found.valid.all()
    assert found.total.isfinite().all()
    if rollouts.faults[-1]:
        for values in found.parts.values():
            assert values[-1] <= values.min()
