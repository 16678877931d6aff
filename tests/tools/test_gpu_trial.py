"""The trial of a GPU: a step that crashes or hangs leaves the others, and a dry run takes every branch."""

from __future__ import annotations

import functools
import io
import json
import sys
from pathlib import Path

import pytest

from tests import processes
from tools.gpu_trial.page import page
from tools.gpu_trial.runner import Task, run_all
from tools.gpu_trial.steps import STEPS

STAND_IN = """
import json, os, sys, time
name, result = sys.argv[2], sys.argv[4]
time.sleep(3.0 * (name == "imports"))
open(result.replace(".json", ".ready"), "w")
if not sys.stdin.readline():
    sys.exit()
if name == "hangs":
    open(result, "w").write(json.dumps({"so_far": 1}))
    time.sleep(60)
if name == "crashes":
    print("out of memory")
    os.abort()
open(result, "w").write(json.dumps({"answer": 1.5, "by": {"a": {"x": 1}, "b": {"x": None}}}))
"""


AGAIN = {"sft_2b_equal", "sft_2b_unequal", "compilation_warm"}
"""Steps that a dry run takes as others: its model has one size, and what it compiles is not kept."""


def run(names: list[str], budget_s: float, folder: Path) -> list[dict[str, object]]:
    command = [sys.executable, "-c", STAND_IN]
    return run_all([Task(name, 2.5) for name in names], command, budget_s, folder, {"device": "cpu"}, folder / "t.json")


def test_steps_that_crash_or_hang_leave_the_others(tmp_path: Path) -> None:
    records = run(["crashes", "hangs", "works"], 100.0, tmp_path)
    assert [record["status"] for record in records] == ["failed", "timed out", "done"]
    assert records[0]["end_of_log"] == ["out of memory"]
    assert records[1]["figures"] == {"so_far": 1}
    assert records[2]["figures"] == {"answer": 1.5, "by": {"a": {"x": 1}, "b": {"x": None}}}
    assert json.loads((tmp_path / "t.json").read_text()) == {"device": "cpu", "steps": records}


@pytest.mark.slow
def test_importing_does_not_count_to_a_steps_limit(tmp_path: Path) -> None:
    (record,) = run(["imports"], 100.0, tmp_path)
    assert record["status"] == "done"


def test_no_step_begins_without_time(tmp_path: Path) -> None:
    records = run(["works", "more"], 1.0, tmp_path)
    assert [record["status"] for record in records] == ["no time left", "no time left"]


def test_all_limits_are_of_one_order_and_the_seven_worthiest_fit_into_six_minutes() -> None:
    limits = [step.limit_s for step in STEPS.values()]
    assert max(limits) <= 90
    assert sum(limits[:7]) <= 360


def test_the_page_shows_every_step_and_its_figures() -> None:
    figures = {"answer": 1.5, "by": {"a": {"x": 1}, "b": {"x": None}}}
    steps = [
        {"step": "device", "status": "done", "seconds": 1.0, "figures": {"name": "H200"}},
        {"step": "works", "status": "done", "seconds": 2.0, "figures": figures},
        {"step": "crashes", "status": "failed", "seconds": 3.0, "figures": {}, "end_of_log": ["out of memory"]},
    ]
    text = page({"device": "cuda", "commit": "abc", "steps": steps})
    assert text.startswith("# The trial of a GPU\n\nOne H200, commit abc")
    for line in ("## works", "| answer | 1.5 |", "| a | 1 |", "failed, 3.0 s", "    out of memory"):
        assert line in text.splitlines()
    assert "A dry run on a CPU" in page({"device": "cpu", "commit": "abc", "steps": steps})


def test_the_wheels_are_those_of_the_lock() -> None:
    root = Path(__file__).resolve().parents[2]
    lines = (root / "tools/gpu_trial/wheels.txt").read_text().splitlines()
    locked = {line.split()[0] for line in (root / "requirements.lock").read_text().splitlines() if "==" in line}
    ours = {line for line in lines if line and not line.startswith("#")}
    assert {line.partition("==")[0] for line in ours - locked} == {"liger-kernel", "torchao"}  # extras outside of it


@pytest.mark.slow
def test_a_dry_run_ends_with_a_page(tmp_path: Path) -> None:
    from tools.gpu_trial.__main__ import main

    with pytest.raises(SystemExit) as ended:
        main(["--device", "cpu", "--out", str(tmp_path), "--only", "device", "collectives"])
    assert ended.value.code == 0
    steps = json.loads((tmp_path / "trial.json").read_text())["steps"]
    assert {record["step"]: record["status"] for record in steps} == {"device": "done", "collectives": "done"}
    assert (tmp_path / "trial.md").read_text().startswith("# The trial of a GPU")


def take(step: str, folder: Path) -> None:
    """A step of a dry run, whose figures go to `folder`."""
    from tools.gpu_trial.__main__ import main

    sys.stdin = io.StringIO("\n")  # the start
    main(["--device", "cpu", "--folder", str(folder), "--step", step, "--result", str(folder / f"{step}.json")])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_dry_run_takes_every_branch(tmp_path: Path) -> None:
    steps = [step for step in STEPS if step not in AGAIN]
    for step in steps:
        done = processes.run(functools.partial(take, step, tmp_path))
        assert done.returncode == 0, f"{step}: {done.stderr}"
    figures = {step: json.loads((tmp_path / f"{step}.json").read_text()) for step in steps}
    parity = figures["parity"]["tiny"]
    assert parity["cpu float32 auto"]["gradient_gap"] < 1e-5
    assert parity["cpu bfloat16 auto"]["gradient_gap"] < 3e-2
    ways = figures["attention"]["256"]
    assert all(way["gradient_gap"] < 2e-2 for way in ways.values() if isinstance(way, dict) and "refused" not in way)
    losses = figures["sft_0.6b_unequal"]["first_step_loss"]
    assert losses["plain loop"] == pytest.approx(losses["ours"], rel=1e-6)
    assert figures["variants"]["0.6b liger"]["refused"].startswith(
        "ValueError: model.kernels: Liger's kernels need a GPU"
    )
    assert figures["collectives"]["fsdp_gradient_gap"] < 1e-6
