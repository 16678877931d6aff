"""The figures of README and of the demo's recipe, as a run's results give them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.docs.documents import ROOT
from tools.docs.figures import main


def results(ade: float, collision: float, right: float) -> dict[str, Any]:
    drive = {"ade": {"all": ade}, "collision": {"all": collision}, "off_road": {"all": 0.25}, "scenes": {"all": 84.0}}
    return {"held_out": {"drive": {"model": drive, "constant velocity": drive},
                         "answer": {"model": {"accuracy": {"all": right}}}}}  # fmt: skip


def test_a_run_writes_the_table_and_the_recipes_head(tmp_path: Path) -> None:
    for name in ("README.md", "docs/quickstart.md", "recipes/demo.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    figures = {"untrained": results(9.0, 0.5, 0.0), "broad": results(3.0, 0.125, 0.605)}
    (tmp_path / "results.json").write_text(json.dumps(figures))
    (tmp_path / "code.json").write_text(json.dumps({"sha": "0123456789abcdef"}))
    assert main([str(tmp_path), "--root", str(tmp_path)]) == 0
    readme, recipe = ((tmp_path / name).read_text(encoding="utf-8") for name in ("README.md", "recipes/demo.yaml"))
    assert "\n| untrained | 9.00 | 50.0 % | 25.0 % | 0.0 % |\n| broad | 3.00 | 12.5 % | 25.0 % | 60.5 % |\n" in readme
    assert "\n| constant velocity | 3.00 | 12.5 % | 25.0 % |  |\n\nInterrupt it" in readme
    assert "(measured at commit 0123456; " in readme
    assert "ADE 9.00 -> 3.00 m, collisions 50.0 -> 12.5 %, answers right 0 -> 60.5 % (README.md)." in recipe
    page = (tmp_path / "docs" / "quickstart.md").read_text(encoding="utf-8")
    assert f"(pictures/demo.svg)\n\n*`make demo` ({tmp_path.name}), at commit 0123456.*\n\nInterrupt it" in page
    assert main([str(tmp_path), "--root", str(tmp_path)]) == 0, "a second run finds its places again"
    (tmp_path / "code.json").write_text(json.dumps({"sha": None}))
    with pytest.raises(ValueError, match="names no commit"):
        main([str(tmp_path), "--root", str(tmp_path)])
    (tmp_path / "code.json").write_text(json.dumps({"sha": "0123456789abcdef"}))
    (tmp_path / "README.md").write_text("no table")
    with pytest.raises(ValueError, match=r"README\.md: 0 places"):
        main([str(tmp_path), "--root", str(tmp_path)])
