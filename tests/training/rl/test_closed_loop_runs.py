"""Closed loop end to end: killed in an episode a run ends equal, and two ranks take the steps of one."""

from __future__ import annotations

import functools
import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from framework.__main__ import main
from framework.recipe import arguments
from framework.training.rl.engine.embedded import EmbeddedEngine
from framework.training.rl.sampler import Sampler
from tests.processes import run, run_ranks
from tests.training.rl.policy_setting import Apart
from tests.training.rl.told_policy import tell
from tests.worlds import worlds

STEPS, TURNS = 3, 2
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SAME_FLOW = ("loss", "gradient_norm", "reward/mean", "episodes/turns", "answers/length", "policy/approximate_kl")
SAME = ("loss", "gradient_norm", "reward/mean", "episodes/turns", "answers/length", "policy/entropy", "rl/groups")


def words(folder: Path, name: str, *more: str) -> list[str]:
    """Two updates a step, and turns that are credited by what follows them."""
    return [
        "recipe=rl_dapo_closed_loop", "scale=tiny", f"curriculum.max_steps_per_stage={STEPS}",
        "sources.world_hard.scenes=12", "evals=[]", "init_from=null", "checkpoint.every=1", "data.micro_batch=2",
        "stage.global_batch=4", "stage.group_size=2", "stage/prompt_weights=none", "stage.num_minibatches=2",
        "stage/filter=none", f"stage.rollout.horizon_s={TURNS}",
        "stage.rollout.credit=return_to_go", f"run.name={name}", f"paths.runs={folder}/runs",
        f"paths.cache={worlds()}", *more,
    ]  # fmt: skip


def train(told: Path, overrides: Sequence[str]) -> int:
    """The command with `overrides`; `told` gets a file rank-N.jsonl, a line a step."""
    told.mkdir(exist_ok=True)
    tell(told / f"rank-{os.environ.get('RANK', '0')}.jsonl")
    return main(overrides)


def killed(overrides: Sequence[str]) -> int:
    """The command, killed when the second turn of the second step's episodes has been answered."""
    answer = Sampler.answer_turn

    def dies(self: Sampler, seen: Any, step: int) -> Any:
        answered = answer(self, seen, step)
        if step == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return answered

    Sampler.answer_turn = dies  # type: ignore[method-assign]
    return main(overrides)


AHEAD = ("stage.async_rollout=true", "simulator/traffic=car_following")
"""First turns are sampled while the step before trains, and the others react to the ego."""


def ahead(do: Callable[[Sequence[str]], int], overrides: Sequence[str]) -> int:
    """Does something with `overrides` in a process whose engine passes for one with weights of its own; the check of
    recipes, which reads its source, would not believe it.
    """
    arguments.refusal = lambda located, given: None
    EmbeddedEngine.own_weights, EmbeddedEngine.supports_async = True, True  # type: ignore[attr-defined]
    EmbeddedEngine.start = Apart.start  # type: ignore[attr-defined]
    return do(overrides)


def told(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("episodes")
    done = run(functools.partial(train, folder / "alone", words(folder, "alone")))
    assert done.returncode == 0, done.stderr[-3000:]
    steps = told(folder / "alone" / "rank-0.jsonl")
    assert len(steps) == STEPS
    assert all(1 < step["episodes/turns"] <= TURNS for step in steps)
    return folder, steps


@pytest.mark.guarantee("A run killed in mid-episode drives the step's episodes once more, and ends equal")
def test_killed_in_the_second_turn_it_ends_equal(undisturbed: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, expected = undisturbed
    overrides = words(folder, "killed")
    done = run(functools.partial(killed, overrides))
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    done = run(functools.partial(train, folder / "killed", overrides))
    assert done.returncode == 0, done.stderr[-3000:]
    again = told(folder / "killed" / "rank-0.jsonl")
    assert len(again) == STEPS - 1, "it goes on where it was killed"
    assert [{name: step[name] for name in SAME} for step in again] == [
        {name: step[name] for name in SAME} for step in expected[-len(again) :]
    ]


@pytest.mark.guarantee("A run killed in mid-episode ends equal with rollouts ahead and road users that react, too")
def test_killed_in_an_episode_whose_first_turn_was_sampled_ahead_it_ends_equal(tmp_path: Path) -> None:
    """Only first turns are old, by one step: the resumed run keeps them, and samples later turns again."""
    alone, overrides = words(tmp_path, "alone", *AHEAD), words(tmp_path, "killed", *AHEAD)
    done = run(functools.partial(ahead, functools.partial(train, tmp_path / "alone"), alone))
    assert done.returncode == 0, done.stderr[-3000:]
    expected = told(tmp_path / "alone" / "rank-0.jsonl")
    for step in expected:
        assert step["answers/staleness"] == pytest.approx(
            0.0 if step is expected[0] else 1.0 / step["episodes/turns"], abs=0.2
        )
    done = run(functools.partial(ahead, killed, overrides))
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    done = run(functools.partial(ahead, functools.partial(train, tmp_path / "killed"), overrides))
    assert done.returncode == 0, done.stderr[-3000:]
    again = told(tmp_path / "killed" / "rank-0.jsonl")
    assert [{name: step[name] for name in SAME} for step in again] == [
        {name: step[name] for name in SAME} for step in expected[-len(again) :]
    ]


FLOW = ("model/action_head=flow", "model.action_head.sample_noise=0.5")


@pytest.mark.guarantee(
    "A run of Flow-GRPO that is killed in mid-episode ends equal, and two ranks take the steps of one"
)
def test_an_action_head_drives_on_after_a_kill_and_on_two_ranks(tmp_path: Path) -> None:
    """With a reference model and two updates a step."""
    flow = (*FLOW, "stage/objective=grpo")
    done = run(functools.partial(train, tmp_path / "alone", words(tmp_path, "alone", *flow)))
    assert done.returncode == 0, done.stderr[-3000:]
    expected = [{name: step[name] for name in SAME_FLOW} for step in told(tmp_path / "alone" / "rank-0.jsonl")]
    overrides = words(tmp_path, "killed", *flow)
    assert run(functools.partial(killed, overrides)).returncode == -signal.SIGKILL
    done = run(functools.partial(train, tmp_path / "killed", overrides))
    assert done.returncode == 0, done.stderr[-3000:]
    again = [{name: step[name] for name in SAME_FLOW} for step in told(tmp_path / "killed" / "rank-0.jsonl")]
    assert again == expected[1:]
    ranked = words(tmp_path, "ranks", *flow, "parallel.devices=2", "parallel.mesh.shard=2")
    run_ranks(2, functools.partial(train, tmp_path / "ranks", ranked), timeout=800)
    for found, known in zip(told(tmp_path / "ranks" / "rank-1.jsonl"), expected, strict=True):
        assert {name: found[name] for name in SAME_FLOW} == pytest.approx(known, rel=1e-3, abs=1e-5)


@pytest.mark.guarantee("Steps in closed loop on two ranks equal those of one")
def test_two_ranks_take_the_steps_of_one(undisturbed: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, expected = undisturbed
    overrides = words(folder, "ranks", "parallel.devices=2", "parallel.mesh.shard=2")
    run_ranks(2, functools.partial(train, folder / "ranks", overrides), timeout=800)
    for rank in (0, 1):
        for found, known in zip(told(folder / "ranks" / f"rank-{rank}.jsonl"), expected, strict=True):
            assert {name: found[name] for name in SAME} == pytest.approx(
                {name: known[name] for name in SAME}, rel=1e-3, abs=1e-5
            )
