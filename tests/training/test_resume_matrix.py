"""One run, resumed with another value for each row of the table: it shows the value, or refuses it by name."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from framework.launch.resumption import refuse_start, resumption_problems
from framework.recipe.catalogue import Catalogue, default_root
from framework.recipe.compose import compose
from framework.recipe.layers import child
from framework.recipe.problem import Key, RecipeError
from framework.recipe.resume import rule_of, rules
from framework.training.datamodule import data_of
from tests.processes import run
from tests.training.resumed_run import Seen, ended

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STEP, RL = 2, "curriculum.stages.rl"
BASE: dict[str, Any] = {
    "run.name": "run",
    "init_from": None,
    "checkpoint.every": STEP,
    "data.image_width": 64,
    "sources.world_hard.scenes": 16,
    "sources.world_hard_held_out.scenes": 4,
    "stage.steps": 8,
    "curriculum.max_steps_per_stage": None,
    "stage.global_batch": 2,
    "stage.micro_batch": 2,
    "stage.group_size": 2,
    "stage.max_new_tokens": 24,
    "stage/filter": "none",
    "stage/objective/kl": "k3",
    "stage.lr": 0.001,
    "stage.warmup_share": 0.0,
    "stage.rollout_page_groups": 0,
}
"""The run, as changes of rl_dapo with scale=tiny on the command line."""
SCALED = (
    "stage.objective.temperature",
    "data.global_batch",
    "data.micro_batch",
    "data.workers",
    "data.cameras",
    "evals.simulated_hard.batch_size",
)
"""Keys that scale=tiny sets, whatever a recipe's file says."""


@dataclass(frozen=True)
class Row:
    """A value that is changed for the resumed attempt."""

    key: str
    """Its key in the recipe, `stage` for the stage's."""
    value: Any
    """What it becomes."""
    shows: Callable[[Seen], Any] | None = None
    """What the resumed run shows of it; None for a value that is refused."""
    expected: Any = None
    """What that must be; None for the value itself."""
    steps: int = 0
    """Steps that the resumed attempt trains first."""
    attempt: str = "most"
    """The resumed attempt: rows of one are changed at once, those that would hide each other in several."""
    place: str = ""
    """The key below `task`, where it is not that of the recipe."""

    @property
    def task_key(self) -> Key:
        """The key below `task`; of an added node its first."""
        name = self.place or self.key
        name = f"{RL}.{name.removeprefix('stage.')}" if name.startswith("stage.") else name
        return tuple(name.split("."))


APPLIED = [
    Row("stage.lr", 0.003, lambda seen: seen.group["lr"], attempt="rate"),
    Row("stage.weight_decay", 0.3, lambda seen: seen.group["weight_decay"]),
    Row("stage.warmup_share", 1.0, lambda seen: seen.group["lr"], 0.001 * STEP / 8, attempt="warm-up"),
    Row("stage.clip", 0.01, lambda seen: seen.norms, [0.01], steps=1, attempt="step"),
    Row("stage.lr_factors", {"*": 0.5}, lambda seen: seen.group["lr"], 0.0005, attempt="factors"),
    Row("stage.schedule.min_lr_rate", 0.0, lambda seen: seen.group["lr"] < 0.001, True, attempt="schedule"),
    Row("stage.steps", 12, lambda seen: seen.trainer.max_steps),
    Row("stage.optimizer.betas", [0.5, 0.9], lambda seen: list(seen.group["betas"])),
    Row("stage.global_batch", 4, lambda seen: len(seen.module.trained), steps=1, attempt="step"),
    Row("stage.micro_batch", 1, lambda seen: seen.module.minibatches.rows),
    Row(
        "stage.mixture.parts.hard.tasks.reason",
        1.0,
        lambda seen: data_of(seen.trainer).mixture.parts["hard"].tasks["reason"],
    ),
    Row(
        "rewards.weights.comfort",
        9.0,
        lambda seen: seen.module.stage.rewards.weights["comfort"],
        place=f"{RL}.rewards.weights.comfort",
    ),
    Row(
        "simulator.vehicle_length",
        5.0,
        lambda seen: seen.module.stage.simulator.vehicle.length,
        place=f"{RL}.simulator.vehicle_length",
    ),
    Row(
        "stage.continuation",
        {"_target_": "framework.training.rl.continuation.Continuation", "replan_s": 1.0, "batch_size": 2},
        lambda seen: seen.module.stage.continuation is not None,
        True,
    ),
    Row(
        "stage.rollout",
        {"_target_": "framework.training.rl.closed_loop.ClosedLoop", "replan_s": 2.5},
        lambda seen: seen.module.stage.rollout is not None,
        True,
        attempt="rate",
    ),
    Row("stage.prompt_weights.power", 2.0, lambda seen: seen.module.collector.curriculum.weights.power),
    Row("stage.alarms.entropy_collapse.steps", 7, lambda seen: seen.module.alarms.alarms["entropy_collapse"].steps),
    Row(
        "stage.filter",
        {"_target_": "framework.objective.group_filter.GroupFilter", "floor": 0.5},
        lambda seen: seen.module.stage.filter is not None,
        True,
    ),
    Row("stage.num_minibatches", 2, lambda seen: len(seen.norms), steps=1, attempt="minibatches"),
    Row("stage.max_logprob_gap", 0.5, lambda seen: seen.module.gate.max_gap),
    Row("stage.max_resample_factor", 3, lambda seen: seen.module.stage.max_resample_factor),
    Row("stage.generation_batch_size", 2, lambda seen: seen.module.stage.generation_batch_size),
    Row("stage.objective.temperature", 0.9, lambda seen: seen.module.stage.objective.temperature),
    Row("data.global_batch", 16, lambda seen: seen.task.data.global_batch),
    Row("data.micro_batch", 1, lambda seen: seen.task.data.micro_batch),
    Row("data.max_length", 1600, lambda seen: data_of(seen.trainer).loader.renderer.max_length),
    Row("data.pack", 2048, lambda seen: data_of(seen.trainer).pipeline.pack),
    Row("data.workers", 1, lambda seen: data_of(seen.trainer).pipeline.workers),
    Row("data.prefetch_factor", 3, lambda seen: data_of(seen.trainer).pipeline.prefetch_factor),
    Row("data.shard_prefetch_steps", 2, lambda seen: data_of(seen.trainer).pipeline.shard_prefetch_steps),
    Row(
        "data.cache",
        {"_target_": "framework.data.shards.cache.CachePolicy", "stall_s": 5.0},
        lambda seen: data_of(seen.trainer).pipeline.cache.stall_s,
        5.0,
    ),
    Row("data.corrupt_shards", "quarantine", lambda seen: data_of(seen.trainer).pipeline.corrupt_shards),
    Row(
        "data.quarantine",
        {"_target_": "framework.data.shards.quarantine.QuarantinePolicy", "limit": 0.5},
        lambda seen: data_of(seen.trainer).pipeline.quarantine.limit,
        0.5,
    ),
    Row(
        "model.backbone.attention",
        "eager",
        lambda seen: seen.module.model.backbone.model.language_model.config._attn_implementation,
        attempt="factors",
    ),
    Row(
        "checkpoint.every", 1, lambda seen: _saved(seen)[-1], f"step-{STEP + 1:08d}.attempt-2", steps=1, attempt="step"
    ),
    Row("tracking.every", 2, lambda seen: seen.task.tracking.every),
    Row("evals.simulated_hard.batch_size", 3, lambda seen: seen.task.evals["simulated_hard"].batch_size),
    Row("parallel.threads", 2, lambda seen: torch.get_num_threads()),
]
IRRELEVANT = [
    Row("sources.world_hard.cache", "elsewhere", place=f"{RL}.mixture.parts.hard.source.cache"),
    Row("sources.world_hard.workers", 1, place=f"{RL}.mixture.parts.hard.source.workers"),
    Row("sources.world_hard_held_out.cache", "elsewhere", place="evals.simulated_hard.source.cache"),
    Row("sources.world_hard_held_out.workers", 1, place="evals.simulated_hard.source.workers"),
    Row("stage.rollout_page_groups", 4),
]
REFUSED = [
    Row("stage._target_", "framework.training.stages.SupervisedStage"),
    Row("stage.optimizer._target_", "framework.training.optim.KahanAdamW"),
    Row("stage.trainable", ["*", "!*vision*"]),
    Row("stage.steps", 1),
    Row("stage.objective._target_", "framework.objective.supervised.CrossEntropy"),
    Row("stage/objective/kl", "none", place="stage.objective.kl"),
    Row("stage.objective.kl._target_", "framework.objective.kl.Other"),
    Row("stage.group_size", 3),
    Row("stage.max_new_tokens", 48),
    Row("stage.async_rollout", True),
    Row("data.canonical_nodes", 2),
    Row("data.shuffle_block", 5),
    Row("data.tasks.answer.questions_per_sample", 2),
    Row("data.sensors.lidar.max_points", 100),
    Row("data.cameras", ["front", "left"]),
    Row("data.image_width", 96),
    Row("data.video_frames", 1),
    Row("model.encoders.lidar.cells", 16),
    Row("parallel.precision.weights", "bfloat16"),
    Row("run.seed", 7),
    Row("init_from", "another"),
]
NOT_RUN = {"curriculum.stages.*.sampler.**"}
"""Rows of the table that no test resumes with: another sampler needs a server of vLLM."""


def _words(root: Path, runs: Path, *rows: Row) -> list[str]:
    """The command line of the run with the values of `rows`, which a recipe's file sets where a file can."""
    changes = dict(BASE)
    tree: dict[str, Any] = {}
    for row in rows:
        if row.key in BASE or row.key in SCALED:
            changes[row.key] = row.value
            continue
        *above, last = row.key.split(".")
        node = tree
        for name in above:
            node = node.setdefault(name, {})
        node[last] = row.value
    text = yaml.safe_dump(tree, sort_keys=False) if tree else ""
    head = "# A recipe of the test.\n# @package _global_\ndefaults:\n  - rl_dapo\n  - _self_\n"
    (root / "recipes" / "changed.yaml").write_text(head + text)
    places = [f"paths.runs={runs}", f"paths.cache={root}/cache"]
    return ["recipe=changed", "scale=tiny", *places, *(f"{key}={_written(value)}" for key, value in changes.items())]


def _written(value: Any) -> str:
    return "null" if value is None else str(value).replace("'", "")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of recipes."""
    root = tmp_path_factory.mktemp("matrix")
    (root / "conf").symlink_to(default_root() / "conf")
    shutil.copytree(default_root() / "recipes", root / "recipes")
    return root


@pytest.fixture(scope="module")
def stopped(root: Path) -> Path:
    """The folder of runs that holds the run, stopped after `STEP` steps."""
    work = functools.partial(ended, _words(root, root / "runs"), root, STEP, _loss, root / "first.json")
    done = run(work)
    assert done.returncode == 0, done.stderr[-3000:]
    return root / "runs"


def _saved(seen: Seen) -> list[str]:
    """The names of the run's checkpoints."""
    return sorted(folder.name for folder in Path(seen.trainer.default_root_dir, "checkpoints").glob("step-*"))


def _loss(seen: Seen) -> Any:
    return seen.metrics.get("loss")


def _shown(attempt: str, seen: Seen) -> dict[str, Any]:
    """What a resumed attempt shows of each of its rows."""
    return {row.key: row.shows(seen) for row in APPLIED if row.attempt == attempt and row.shows is not None}


Resumed = Callable[[str], tuple[dict[str, Any], str]]


@pytest.fixture(scope="module")
def resumed(root: Path, stopped: Path, tmp_path_factory: pytest.TempPathFactory) -> Resumed:
    """What an attempt shows of its rows, and what it says on standard error."""

    @functools.cache
    def attempt(name: str) -> tuple[dict[str, Any], str]:
        rows, folder = [row for row in APPLIED if row.attempt == name], tmp_path_factory.mktemp("attempt")
        shutil.copytree(stopped, folder / "runs")
        words, step, report = _words(root, folder / "runs", *rows), STEP + rows[0].steps, folder / "seen.json"
        done = run(functools.partial(ended, words, root, step, functools.partial(_shown, name), report))
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(report.read_text()), done.stderr

    return attempt


@pytest.fixture(scope="module")
def matrix() -> Iterator[list[tuple[str, ...]]]:
    """The table, printed at the end: key, value before, value after, what became of it, and the message."""
    rows: list[tuple[str, ...]] = []
    yield rows
    print("\n| key | before | after | outcome | message |\n| --- | --- | --- | --- | --- |")
    for row in sorted(rows, key=lambda row: (row[3], row[0])):
        print(f"| {' | '.join(row)} |")


def _origin(row: Row) -> str:
    if "/" in row.key:
        return f"conf/{row.key}/{row.value}.yaml:"
    return "command line" if row.key in BASE or row.key in SCALED else "recipes/changed.yaml:"


def _cells(runs: Path, row: Row, outcome: str, message: str) -> tuple[str, ...]:
    tree = yaml.safe_load((runs / "run" / "recipe.yaml").read_text())
    before: Any = tree if row.task_key[0] == "run" else tree["task"]
    for name in row.task_key:
        before = child(before, name)
    return ".".join(row.task_key), str(before), str(row.value), outcome, message


@pytest.mark.parametrize("row", IRRELEVANT, ids=lambda row: row.key)
def test_irrelevant(root: Path, stopped: Path, row: Row, matrix: list[tuple[str, ...]]) -> None:
    """The check says nothing."""
    assert resumption_problems(compose(_words(root, stopped, row), Catalogue(root))) == []
    matrix.append(_cells(stopped, row, "irrelevant", ""))


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row.key)
def test_refused(root: Path, stopped: Path, row: Row, matrix: list[tuple[str, ...]]) -> None:
    """The check before the first step names the value with its line."""
    composition = compose(_words(root, stopped, row), Catalogue(root))
    with pytest.raises(RecipeError) as caught:
        refuse_start(composition)
    (problem,) = (problem for problem in caught.value.problems if not problem.warning)
    assert problem.key.startswith(".".join(row.task_key))
    assert str(problem).startswith(_origin(row))
    assert "start a new run (run.name=NEW init_from=RUN)" in problem.message
    matrix.append(_cells(stopped, row, "refused", str(problem)))


@pytest.mark.fault("a resumed run with other values")
@pytest.mark.parametrize("number", range(len(APPLIED)), ids=lambda number: APPLIED[number].key)
def test_applied(resumed: Resumed, stopped: Path, number: int, matrix: list[tuple[str, ...]]) -> None:
    """The resumed run says that the value applies, and shows it."""
    row = APPLIED[number]
    shown, said = resumed(row.attempt)
    messages = [line for line in said.splitlines() if f"until step {STEP}, now" in line]
    key = row.key.removeprefix("stage.")
    (message, *_) = [line for line in messages if line.startswith(f"warning: {_origin(row)}") and key in line]
    assert shown[row.key] == (row.value if row.expected is None else row.expected)
    matrix.append(_cells(stopped, row, "applied", message))


def test_every_row_of_the_table_is_here() -> None:
    named = {rule_of(row.task_key) for row in (*APPLIED, *IRRELEVANT, *REFUSED)}
    assert {".".join(rule.pattern) for rule in rules() if rule not in named} == NOT_RUN
