"""Runs are compared by their recipes and their newest figures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from framework.__main__ import main
from tests.processes import REPOSITORY

STORED = REPOSITORY / "tests" / "fixtures" / "old_tree" / "runs" / "stopped_in_quality" / "recipe.yaml"
KINDS = ("curve", "cut_in", "intersection", "lead_braking", "roundabout")


def drive(ade: list[float], collision: float, scenes: float) -> dict[str, Any]:
    def by_kind(values: list[float]) -> dict[str, float]:
        return {"all": sum(values) / len(values), **dict(zip(KINDS, values, strict=True))}

    counts = {"all": scenes * len(KINDS), **dict.fromkeys(KINDS, scenes)}
    measures = {"ade": by_kind(ade), "collision": by_kind([collision] * len(KINDS)), "scenes": counts}
    return {"held_out": {"drive": {"model": measures}}}


def run(folder: Path, **stages: dict[str, Any]) -> Path:
    folder.mkdir()
    shutil.copy(STORED, folder / "recipe.yaml")
    (folder / "results.json").write_text(json.dumps(stages))
    return folder


def test_differences_beyond_the_noise_are_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run(tmp_path / "first", broad=drive([1.0, 4.0, 2.0, 8.0, 3.0], 0.2, 40))
    earlier = drive([9.0] * 5, 0.9, 40)
    second = run(tmp_path / "second", broad=earlier, quality=drive([0.9, 3.8, 1.9, 7.8, 2.8], 0.19, 40))
    recipe = (second / "recipe.yaml").read_text()
    assert "seed: 0" in recipe
    (second / "recipe.yaml").write_text(recipe.replace("seed: 0", "seed: 5", 1))
    assert main(["compare", str(first), str(second)]) == 0
    printed = capsys.readouterr().out
    assert "run.seed: 0 -> 5" in printed
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    (ade,) = [line for line in lines if line.startswith("ADE second")]
    assert "3.44 m" in ade, "the newest stage's"
    assert ade.endswith("better"), "in pairs of kinds every one is better, although kinds differ by more"
    assert next(line for line in lines if line.startswith("collisions second")).endswith("within noise")
    page = (second / "compare.html").read_text()
    assert '<td class="better">better</td>' in page
    assert "run.seed" in page


def test_other_scenes_are_not_paired(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run(tmp_path / "first", broad=drive([1.0, 4.0, 2.0, 8.0, 3.0], 0.2, 40))
    second = run(tmp_path / "second", broad=drive([0.9, 3.8, 1.9, 7.8, 2.8], 0.4, 30))
    assert main(["compare", str(first), str(second)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert next(line for line in lines if line.startswith("ADE second")).endswith("within noise")
    assert next(line for line in lines if line.startswith("collisions second")).endswith("worse")


def test_bad_input_is_told_in_one_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = run(tmp_path / "whole", broad=drive([1.0] * 5, 0.2, 40))
    bare = run(tmp_path / "bare")
    (bare / "results.json").unlink()
    broken = run(tmp_path / "broken")
    (broken / "results.json").write_text("{")
    for words, told in (
        ([whole], "needs two runs or more, not 1"),
        ([whole, whole], "needs two different runs"),
        ([whole, tmp_path / "nowhere"], "no run: there is no recipe.yaml in"),
        ([whole, bare], "has no results.json"),
        ([whole, broken], "is damaged"),
    ):
        assert main(["compare", *map(str, words)]) == 2
        error = capsys.readouterr().err
        assert told in error
        assert len(error.splitlines()) == 1
