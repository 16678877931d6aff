"""Reinforcement learning over several ranks: steps are those of a single process."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest

from tests.processes import run_ranks
from tests.training.rl.told_policy import train
from tests.worlds import worlds

STEPS = 2
RL = "curriculum.stages.rl"
SAME = (
    "loss", "gradient_norm", "reward/mean", "reward/std", "answers/length", "driving/collision", "policy/entropy",
    "policy/approximate_kl", "policy/reference_kl", "rl/groups",
)  # fmt: skip
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def _train(folder: Path, name: str, ranks: int, *words: str) -> list[list[dict[str, float]]]:
    """The metrics of each step on each rank, with all that ranks do together: an evaluation before training, a
    reference, and more updates than there are groups, so that one rank idles in each.
    """
    told = folder / name
    told.mkdir()
    few = [
        "recipe=rl_grpo", "scale=tiny", f"curriculum.max_steps_per_stage={STEPS}", "sources.world_hard.scenes=12",
        "sources.world_hard_held_out.scenes=4", "init_from=null", "stage.global_batch=4", "data.micro_batch=1",
        f"{RL}.group_size=4", f"{RL}.num_minibatches=6", "stage/prompt_weights=none",
        f"run.name={name}", f"parallel.devices={ranks}",
        f"paths.runs={folder}/runs", f"paths.cache={worlds()}",
    ]  # fmt: skip
    run_ranks(ranks, functools.partial(train, told, [*few, *words]), timeout=500)
    return [
        [json.loads(line) for line in (told / f"rank-{rank}.jsonl").read_text().splitlines()] for rank in range(ranks)
    ]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, float]]]:
    folder = tmp_path_factory.mktemp("policy-ranks")
    (steps,) = _train(folder, "alone", 1)
    return folder, steps


@pytest.mark.guarantee("RL steps on two ranks, sharded or tensor-parallel, equal those of one")
@pytest.mark.parametrize("cut", ["shard", "tensor"])
def test_two_ranks_take_the_steps_of_one(cut: str, alone: tuple[Path, list[dict[str, float]]]) -> None:
    folder, expected = alone
    ranks = _train(folder, cut, 2, f"parallel.mesh.{cut}=2")
    assert len(expected) == STEPS
    for steps in ranks:
        for found, known in zip(steps, expected, strict=True):
            assert {name: found[name] for name in SAME} == pytest.approx(
                {name: known[name] for name in SAME}, rel=1e-3, abs=1e-5
            )


@pytest.mark.guarantee("An RL stage continues on another mesh, and answers train only with their own prompt")
def test_a_stage_goes_on_with_another_mesh(tmp_path: Path) -> None:
    """Ranks of one tensor group go on with the same groups and counts; a rank more or less gets its share."""
    weights = "{_target_: framework.objective.scenario_weights.ScenarioWeights, focus: hard, power: 8.0, spread: 0.0}"
    words = [f"+{RL}.prompt_weights={weights}", "checkpoint.every=1", "run.name=moved", f"{RL}.num_minibatches=1"]
    words += ["evals=[]"]
    for steps, ranks, cut in [(1, 2, "shard"), (2, 2, "tensor"), (3, 1, "shard"), (4, 2, "shard")]:
        build_model = [f"curriculum.max_steps_per_stage={steps}", f"parallel.mesh.{cut}={ranks}"]
        told = _train(tmp_path, f"until-{steps}", ranks, *words, *build_model)
        assert all(len(found) == 1 for found in told), "it started again"
        for found in told:
            assert [step["loss"] for step in found] == pytest.approx([step["loss"] for step in told[0]])
