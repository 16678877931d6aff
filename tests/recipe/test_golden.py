"""The golden files are what the recipes resolve to."""

from __future__ import annotations

from pathlib import Path

import pytest

from framework.recipe.catalogue import Catalogue
from tools.golden import REFRESH, stale, write


@pytest.mark.slow
def test_golden_files_are_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RECORDINGS", raising=False)
    catalogue = Catalogue()
    differences = list(stale(catalogue, catalogue.root / "tests" / "golden"))
    assert not differences, "\n".join([*differences, f"refresh with: {REFRESH}"])


def test_a_change_of_a_recipe_shows(catalogue: Catalogue, tmp_path: Path) -> None:
    folder = tmp_path / "golden"
    write(catalogue, folder)
    assert list(stale(catalogue, folder)) == []
    (catalogue.root / "conf" / "optimizer" / "adamw.yaml").write_text("_target_: torch.optim.AdamW\nlr: 0.002\n")
    (changed, _) = stale(catalogue, folder)
    assert "-  lr: 0.001" in changed
    assert "+  lr: 0.002" in changed
    (folder / "gone.yaml").write_text("a: 1\n")
    assert len(list(stale(catalogue, folder))) == 3
    write(catalogue, folder)
    assert not (folder / "gone.yaml").exists()
    assert list(stale(catalogue, folder)) == []
