"""The figures of reinforcement learning in docs/rl.md, README and the recipe's head, as runs' results give them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.docs.documents import ROOT
from tools.docs.policies import main

WRITTEN = ("docs/rl.md", "README.md", "recipes/rl_dapo.yaml")


def simulated(collision: float, reward: float) -> dict[str, Any]:
    measures = {"reward": reward, "collision": collision, "at_fault_collision": collision, "off_road": collision,
                "progress": 0.771, "comfortable": 0.5, "planning_score": 0.625, "scenes": 192.0}  # fmt: skip
    return {name: {"all": value} for name, value in measures.items()}


def run(folder: Path, collision: float, reward: float, sha: str | None = "0123456789") -> str:
    baselines = {name: simulated(0.5, -1.0) for name in ("constant velocity", "stay", "expert")}
    stages = {"untrained": simulated(0.25, -0.5), "rl": simulated(collision, reward)}
    results = {
        stage: {"simulated_hard": {"simulation": {"model": model} | baselines}} for stage, model in stages.items()
    }
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "code.json").write_text(json.dumps({"sha": sha}))
    return str(folder)


def test_runs_write_their_rows_and_what_they_gained(tmp_path: Path) -> None:
    for name in WRITTEN:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    weighted = [run(tmp_path / f"a{seed}", 0.10 + 0.01 * seed, -0.2 - 0.1 * seed) for seed in range(3)]
    unweighted = run(tmp_path / "b", 0.15, -0.25)
    words = [*weighted, "--unweighted", unweighted, "--root", str(tmp_path)]
    assert main(words) == 0
    page, readme, recipe = ((tmp_path / name).read_text(encoding="utf-8") for name in WRITTEN)
    gained = "| -0.30 ± 0.10 | 11.0 ± 1.0 % | 11.0 ± 1.0 % | 11.0 ± 1.0 % | 77 ± 0 % | 50 ± 0 % | 0.62 ± 0.00 |"
    assert f"| after `rl_dapo` {gained}\n" in page
    assert "| the demo's policy | -0.50 | 25.0 % | 25.0 % | 25.0 % | 77 % | 50 % | 0.62 |\n" in page
    assert "| `rl_dapo` without prompt weights | -0.25 | 15.0 % |" in page
    assert "at commit 0123456. Of 3 seeds, 3 improve in reward" in page
    assert "reward p = 0.07, collisions p = 0.002, off road p = 0.002)." in page  # t(2) of 3.464 and 24.25, by a table
    assert "\n\nJudging a step's" in page
    assert "; collisions 25.0 → 11.0 ± 1.0 %, PDM score 0.62 → 0.62 ± 0.00 ([three seeds](docs/rl.md)) |" in readme
    assert (
        "on 192 held-out scenes: collisions 25.0 -> 11.0 ± 1.0 %, PDM score 0.62 -> 0.62 ± 0.00 (docs/rl.md)." in recipe
    )
    assert main(words) == 0, "a second run finds its places again"


def test_runs_of_several_commits_are_refused(tmp_path: Path) -> None:
    first, other = run(tmp_path / "a", 0.1, -0.2), run(tmp_path / "b", 0.1, -0.2, sha="ffffffffff")
    with pytest.raises(ValueError, match="0123456789', 'ffffffffff"):
        main([first, other, "--root", str(tmp_path)])
