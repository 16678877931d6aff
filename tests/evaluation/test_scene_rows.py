"""What was measured of each scene: written once and whole, read where it belongs to the results, compared in pairs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from framework.__main__ import main
from framework.evaluation.examples import Example
from framework.evaluation.intervals import bootstrap, over_scene_pairs
from framework.evaluation.scene_rows import read_scene_rows, scene_rows, values_of, write_scene_rows
from framework.run.layout import scenes_file
from tests.evaluation.scenes import make_scene
from tests.evaluation.test_compare import KINDS, run

OF = {"step": 5, "checkpoint": "step-00000005.attempt-1", "weights": "ab", "eval": None}


def test_a_row_holds_the_means_of_a_scene_s_answers() -> None:
    example = Example(make_scene(id="a", kind="curve")).with_measures("drive", {"ade": 2.0, "min_ade": float("nan")})
    for sample, right in (("one?", 1.0), ("two?", 0.0), ("one?", 0.0)):
        example = example.with_measures("answer", {"accuracy": right}, sample)
    (row,) = scene_rows([example, Example(make_scene(id="b"))])
    answers = {"count": 2, "accuracy": 0.5}  # a question that is asked twice counts once
    assert row == {"scene": "a", "kind": "curve", "drive": {"count": 1, "ade": 2.0}, "answer": answers}
    assert values_of([row], "answer", "accuracy") == {"a": (0.5, 2)}
    assert values_of([row], "drive", "min_ade") == {}


def test_rows_are_read_with_their_results_alone(tmp_path: Path) -> None:
    rows = [{"scene": name, "kind": "k", "drive": {"count": 1, "ade": 1.0}} for name in ("b", "a", "b")]
    write_scene_rows(tmp_path, "broad", "held/out", OF, rows)
    write_scene_rows(tmp_path, "broad", "held/out", OF, rows)
    assert [row["scene"] for row in read_scene_rows(tmp_path, "broad", "held/out", OF)] == ["a", "b"]
    assert read_scene_rows(tmp_path, "broad", "held/out", {**OF, "weights": "cd"}) == []
    assert read_scene_rows(tmp_path, "quality", "held/out", OF) == []
    file = scenes_file(tmp_path, "broad", "held/out")
    whole = file.read_text()
    for name in ("name", 'scene": 5, "was'):
        file.write_text(whole.replace('"scene"', f'"{name}"'))
        assert read_scene_rows(tmp_path, "broad", "held/out", OF) == []
    file.write_text(whole.rstrip("\n").rpartition("\n")[0] + "\n")
    assert read_scene_rows(tmp_path, "broad", "held/out", OF) == [], "a part would be another set of scenes"


def test_pairs_tell_what_halves_and_kinds_do_not() -> None:
    rng = np.random.default_rng(0)
    hard = rng.gamma(2.0, 2.0, 200)
    old = {str(n): (value, 1.0) for n, value in enumerate(hard)}
    new = {str(n): (value - 0.2 + 0.3 * rng.standard_normal(), 1.0) for n, value in enumerate(hard)}
    paired = over_scene_pairs(old, new)
    assert paired is not None
    differences = np.array([new[name][0] - old[name][0] for name in old])
    half = 1.96 * differences.std(ddof=1) / np.sqrt(len(differences))
    assert paired.low == pytest.approx(-half, rel=0.1)
    assert paired.high == pytest.approx(half, rel=0.1)
    alone = bootstrap({name: value for name, (value, _) in old.items()}, dict.fromkeys(old, 1.0))
    assert alone is not None
    assert alone.high > 5 * paired.high


def evaluated(folder: Path, ade: list[float]) -> None:
    """A run whose scenes are all of one kind, with rows of scenes."""
    counts = {"all": float(len(ade)), KINDS[0]: float(len(ade))}
    mean = sum(ade) / len(ade)
    measures = {"ade": {"all": mean, KINDS[0]: mean}, "scenes": counts}
    run(folder, broad={"held_out": {"drive": {"model": measures}}})
    (folder / "evaluated.json").write_text(json.dumps({"broad": {"held_out": {**OF, "results": "x"}}}))
    rows = [{"scene": f"s{n}", "kind": KINDS[0], "drive": {"count": 1, "ade": value}} for n, value in enumerate(ade)]
    write_scene_rows(folder, "broad", "held_out", OF, rows)


def test_runs_are_compared_scene_by_scene(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hard = [1.0, 9.0, 3.0, 6.0, 2.0, 8.0]
    evaluated(tmp_path / "first", hard)
    evaluated(tmp_path / "second", [value - 0.1 for value in hard])
    words = ["compare", str(tmp_path / "first"), str(tmp_path / "second")]
    assert main(words) == 0
    ade = next(line for line in capsys.readouterr().out.splitlines() if line.split()[:2] == ["ADE", "second"])
    assert ade.endswith("better"), "every scene is, although scenes differ by more"
    scenes_file(tmp_path / "second", "broad", "held_out").unlink()
    assert main(words) == 0
    ade = next(line for line in capsys.readouterr().out.splitlines() if line.split()[:2] == ["ADE", "second"])
    assert ade.endswith("noise unknown"), "one kind of scenario tells nothing"
