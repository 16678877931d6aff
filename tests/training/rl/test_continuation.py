"""Rewards of where an answer leads when the policy goes on driving."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from framework.generation.engine import Generation, Requests
from framework.recipe.compose import compose
from framework.recipe.instantiate import instantiate
from framework.scene.types import Scene, Trajectory
from framework.scene.world.generate import generate_scene
from framework.simulation.dynamics import Bicycle
from framework.simulation.rewards.driving import Collision, Imitation, Progress
from framework.simulation.rewards.reward_sum import RewardSum
from framework.simulation.rewards.rollouts import RolloutBatch, roll_out
from framework.simulation.simulator import Simulator
from framework.training.evaluators.driver import Answers
from framework.training.rl.continuation import Continuation
from framework.training.rl.engine.embedded import EmbeddedEngine
from framework.training.rl.metrics import MeanMetrics
from framework.training.rl.stage import PolicyStage
from framework.training.tasks.train import Train
from tests.processes import run_ranks
from tests.simulation.scenes import RATE, driven, make_scene, moving
from tests.training.rl.continuation_ranks import train
from tests.training.rl.policy_setting import ANSWERS, GROUPS, Setting, collect
from tests.worlds import worlds

CLOSED = "stage/continuation=closed_loop"
HORIZON_S = 5.0


@dataclass
class Reflex:
    """Always plans the same `acceleration` (m/s^2); None: says nothing that parses, of every other scene."""

    acceleration: float | None
    seen: list[list[Scene]] = field(default_factory=list)
    cameras: Sequence[str] | None = None

    def answer(self, scenes: Sequence[Scene]) -> Answers:
        self.seen.append(list(scenes))
        failing = self.acceleration is None
        plans = [
            None if failing and row % 2 == 0 else _plan(scene, self.acceleration) for row, scene in enumerate(scenes)
        ]
        return Answers([""] * len(scenes), plans)


def _plan(scene: Scene, acceleration: float | None) -> Trajectory:
    assert scene.history is not None
    return Trajectory(driven(float(scene.history.states[-1, 3]), acceleration or 0.0), RATE)


def _judged(
    rollouts: RolloutBatch, driver: Reflex, replan_s: float, simulator: Simulator | None = None
) -> tuple[torch.Tensor, dict[str, float]]:
    rewards = RewardSum({"collision": Collision(), "progress": Progress()}, {"collision": 1.0, "progress": 0.1})
    means, going_on = MeanMetrics(), Continuation(replan_s)
    found = rewards(going_on(rollouts, simulator or Simulator(), driver, means)).total
    return found, {name: sum(values) / len(values) for name, values in means.values.items()}


def _opened(acceleration: float, simulator: Simulator | None = None) -> RolloutBatch:
    """Two equal answers to a road with a parked car 30 m ahead of an ego at 8 m/s."""
    scenes = [make_scene([moving("car", 30.0, 0.0)])] * 2
    plans = [_plan(scene, acceleration) for scene in scenes]
    return roll_out(simulator or Simulator(), scenes, ["", ""], [None, None], [1, 1], plans)


@pytest.mark.guarantee("Rewards can score what follows an answer when the policy keeps driving")
@pytest.mark.parametrize(("opening", "later", "open_loop", "closed_loop"), [(-3.0, 2.0, 0, -1), (0.0, -4.0, -1, 0)])
def test_a_reward_tells_where_the_policy_ends_that_goes_on_from_an_answer(
    opening: float, later: float, open_loop: float, closed_loop: float
) -> None:
    rollouts, driver = _opened(opening), Reflex(later)
    assert Collision()(rollouts).tolist() == [open_loop] * 2
    found = Continuation(1.0)(rollouts, Simulator(), driver, MeanMetrics())
    assert Collision()(found).tolist() == [closed_loop] * 2
    assert [[scene.id for scene in seen] for seen in driver.seen] == [[f"made@{n}"] * 2 for n in (4, 8, 12, 16)]
    assert torch.equal(Imitation()(found), Imitation()(rollouts)), "the answer alone is credited"


def test_of_later_moments_only_cameras_that_the_policy_looks_at_are_drawn() -> None:
    scenes = [generate_scene(3, "curve")]
    rollouts = roll_out(Simulator(), scenes, [""], [None], [1], [_plan(scenes[0], 0.0)])
    driver = Reflex(0.0, cameras=["left"])
    Continuation(4.0)(rollouts, Simulator(), driver, MeanMetrics())
    assert [[camera.name for scene in seen for camera in scene.cameras] for seen in driver.seen] == [["left"]]


@pytest.mark.parametrize("replan_s", [HORIZON_S, 60.0])
def test_without_a_replan_it_is_the_open_loop(replan_s: float) -> None:
    for simulator in (Simulator(), Simulator(dynamics=Bicycle())):
        rollouts, driver = _opened(-3.0, simulator), Reflex(2.0)
        found, means = _judged(rollouts, driver, replan_s, simulator)
        rewards = RewardSum({"collision": Collision(), "progress": Progress()}, {"collision": 1.0, "progress": 0.1})
        assert torch.equal(found, rewards(rollouts).total)
        assert not driver.seen
        assert not means


def test_a_policy_that_sticks_to_its_plan_drives_as_in_open_loop() -> None:
    rollouts = _opened(-3.0)
    found = Continuation(1.0)(rollouts, Simulator(), Reflex(-3.0), MeanMetrics())
    torch.testing.assert_close(found.episodes.ego, rollouts.episodes.ego, atol=1e-3, rtol=1e-4)


def test_replans_that_spell_nothing_brake_and_are_counted() -> None:
    rollouts = _opened(0.0)
    found, means = _judged(rollouts, Reflex(None), 1.0)
    assert found[0] > -0.5 > found[1], "who fails brakes, who goes on drives into the car"
    assert means == {"replans/unparsed": 0.5}
    scenes, plans = list(rollouts.scenes), [None, rollouts.plans[1]]
    unparsed = roll_out(Simulator(), scenes, ["", ""], [None, None], [1, 1], plans)
    found, means = _judged(unparsed, Reflex(None), 1.0)
    assert means == {"replans/unparsed": 0.0}, "an answer without a plan has none to go on from"
    assert found[0] == -1.0


def test_what_cannot_be_carried_out_is_refused() -> None:
    with pytest.raises(ValueError, match="replan_s 0, batch_size 32"):
        Continuation(0.0)
    with pytest.raises(ValueError, match=r"replan_s: 0.3 s are 1.2 of the scenes' periods; give a multiple of 0.25 s"):
        Continuation(0.3)(_opened(0.0), Simulator(), Reflex(0.0), MeanMetrics())


@pytest.mark.slow
def test_a_step_asks_the_engine_greedily_by_each_answers_task(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, generate = list[Requests](), EmbeddedEngine.generate

    def watched(engine: EmbeddedEngine, requests: Requests) -> list[list[Generation]]:
        asked.append(requests)
        return generate(engine, requests)

    monkeypatch.setattr(EmbeddedEngine, "generate", watched)

    def rewards(continuation: Continuation | None) -> list[list[float]]:
        asked.clear()
        setting.loader.pending.clear()
        found = collect(setting.collector(filter=None, continuation=continuation), 0)
        assert ("replans/unparsed" in found.metrics) == any(one.temperature == 0 for one in asked)
        return [group.rewards.tolist() for group in found.groups]

    opened = rewards(None)
    assert rewards(Continuation(HORIZON_S)) == opened
    assert len(asked) == 1, "nothing but the answers is asked for"
    closed = rewards(Continuation(2.0, batch_size=GROUPS * ANSWERS // 2))
    assert [len(one.grammars) for one in asked] == [GROUPS, *[GROUPS * ANSWERS // 2] * 4]
    forms = [grammar for grammar in asked[0].grammars for _ in range(ANSWERS)]
    assert [grammar for one in asked[1:3] for grammar in one.grammars] == forms
    assert closed != opened
    assert rewards(Continuation(2.0, batch_size=GROUPS * ANSWERS // 2)) == closed, "nothing is drawn"


def test_the_preset_gives_the_stage_a_continuation() -> None:
    task = instantiate(compose(["recipe=rl_dapo", "scale=tiny", CLOSED]))
    assert isinstance(task, Train)
    stage = next(task.curriculum.stage_ranges()).stage
    assert isinstance(stage, PolicyStage)
    assert stage.continuation == Continuation(1.0, batch_size=16)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("ranks", [1, 2])
def test_ranks_go_on_with_unequal_numbers_of_answers(ranks: int, tmp_path: Path) -> None:
    """The second rank answers half as many prompts."""
    rl = "curriculum.stages.rl"
    words = [
        "recipe=rl_dapo", "scale=tiny", CLOSED, "curriculum.max_steps_per_stage=2", "sources.world_hard.scenes=12",
        "evals=[]",
        "init_from=null", "stage.global_batch=4", "data.micro_batch=2", f"{rl}.group_size=2",
        "stage/filter=none", "stage/prompt_weights=none",
        f"parallel.devices={ranks}", f"parallel.mesh.shard={ranks}",
        f"paths.runs={tmp_path}/runs", f"paths.cache={worlds()}", "run.name=closed",
    ]  # fmt: skip
    run_ranks(ranks, functools.partial(train, tmp_path, words), timeout=500)
    files = [tmp_path / f"rank-{rank}.jsonl" for rank in range(ranks)]
    told = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    assert [len(steps) for steps in told] == [2] * ranks
    for steps in told:
        assert [step["loss"] for step in steps] == [step["loss"] for step in told[0]]
        assert all(0 <= step["replans/unparsed"] <= 1 for step in steps)
