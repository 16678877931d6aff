"""Two ranks ask one server, a stand-in for vLLM's that shares their memory: it sleeps, and it dies in one's call."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from framework.launch.host import free_port
from framework.recipe.compose import compose
from framework.recipe.instantiate import instantiate
from tests.processes import run_ranks
from tests.training.rl.engine.vllm_stand_in import StandIn
from tests.training.rl.told_policy import train
from tests.worlds import worlds

STEPS = 3
TOGETHER = 4
"""Answers of a step; each `sync` adds one for its probe."""
RL = "curriculum.stages.rl"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def _words(folder: Path) -> list[str]:
    return [
        "recipe=rl_dapo", "scale=tiny", f"curriculum.max_steps_per_stage={STEPS}", "sources.world_hard.scenes=8",
        "evals=[]",
        "init_from=null", "stage.global_batch=2", "data.image_width=64", f"{RL}.group_size=2",
        "stage/filter=none", "stage/prompt_weights=none", f"paths.runs={folder}/runs", f"paths.cache={worlds()}",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    task = instantiate(compose(_words(tmp_path_factory.mktemp("server"))))
    served = StandIn(task.model(special_tokens=task.data.special_tokens).eval())
    yield served
    served.close()


def _train(
    server: StandIn, folder: Path, name: str, *words: str, engine: Sequence[str] = ()
) -> list[list[dict[str, float]]]:
    """What each rank tells of each step, by `server` unless another `engine` is given."""
    told = folder / name
    told.mkdir()
    alone = ["stage/sampler=vllm", f"{RL}.sampler.url={server.url}", f"{RL}.sampler.dtype=float32"]
    alone += [f"{RL}.sampler.max_logprob_gap=0.001", f"{RL}.max_logprob_gap=0.001", f"{RL}.sampler.sleeps=true"]
    run_words = [*_words(folder), *(engine or alone), *words, "parallel.devices=2", f"run.name={name}"]
    run_ranks(2, functools.partial(train, told, run_words), timeout=400)
    return [[json.loads(line) for line in (told / f"rank-{rank}.jsonl").read_text().splitlines()] for rank in (0, 1)]


@pytest.mark.guarantee("Two ranks share one server that sleeps and dies, with the results of an undisturbed run")
def test_what_a_server_is_lost_in_one_ranks_call_changes_nothing(server: StandIn, tmp_path: Path) -> None:
    """By the disk undisturbed; over a process group with a server that dies: both ranks tell the same of every step."""
    torch.set_num_threads(1)
    disk = _train(server, tmp_path, "disk")
    assert server.refused == [], "it was asked for something in its sleep"
    assert server.told.count("/sleep") == STEPS
    server.forget()
    server.lives = TOGETHER + 3  # in the midst of the second step's
    server.told.clear()
    words = "stage/sampler/transfer=collective", f"{RL}.sampler.transfer.backend=gloo"
    broken = _train(server, tmp_path, "collective", *words)
    assert server.told.count("reload_weights") > 0, "it did not die"
    assert server.told.count("receive_weights") == STEPS + 1
    for ranks in (disk, broken):
        for first, second in zip(*ranks, strict=True):
            for metric in ("loss", "gradient_norm", "reward/mean", "answers/weight_version"):
                assert first[metric] == second[metric]
    for undisturbed, disturbed in zip(disk[0], broken[0], strict=True):
        for metric in ("loss", "gradient_norm", "reward/mean", "answers/length"):
            assert undisturbed[metric] == pytest.approx(disturbed[metric], rel=1e-5, abs=1e-7)
    assert [step["answers/weight_version"] for step in broken[0]] == list(range(STEPS))


def test_both_ranks_of_a_fleet_leave_out_a_server_that_is_late(server: StandIn, tmp_path: Path) -> None:
    """The first rank waits for it; the other neither hangs nor asks it."""
    torch.set_num_threads(1)
    nowhere = f"http://127.0.0.1:{free_port()}"
    fleet = ["stage/sampler=vllm_fleet", f"{RL}.max_logprob_gap=0.001"]
    for name, url in (("first", server.url), ("second", nowhere)):
        of_server = {"url": url, "dtype": "float32", "max_logprob_gap": "0.001", "patience_s": "3"}
        fleet += [f"{RL}.sampler.engines.{name}.{key}={value}" for key, value in of_server.items()]
    server.forget()
    server.lives, server.answers = 10**9, 0
    ranks = _train(server, tmp_path, "late", engine=fleet)
    assert server.answers == STEPS * TOGETHER + STEPS + 1, "all answers, and each sync's probe"
    for first, second in zip(*ranks, strict=True):
        for metric in ("loss", "gradient_norm", "reward/mean", "answers/weight_version"):
            assert first[metric] == second[metric]


def test_ranks_of_one_tensor_parallel_group_train_the_answers_of_its_first(server: StandIn, tmp_path: Path) -> None:
    """A server's arithmetic depends on what it computes together: the same question may have two answers."""
    server.forget()
    server.lives, server.answers = 10**9, 0
    ranks = _train(server, tmp_path, "tensor", "parallel.mesh.tensor=2")
    assert server.answers == STEPS * TOGETHER + STEPS + 1, "both ranks asked"
    for first, second in zip(*ranks, strict=True):
        for metric in ("loss", "gradient_norm", "reward/mean", "answers/weight_version"):
            assert first[metric] == second[metric]
