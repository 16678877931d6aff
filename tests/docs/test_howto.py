"""Each how-to's files, commands and test, in a copy of the repository that has nothing else added."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.__main__ import main
from framework.recipe.catalogue import Catalogue
from tests.docs.documents import ROOT, fences

FAST = {"plugin", "reward"}
"""How-tos that the fast suite runs; the others take longer."""
PAGES = [
    pytest.param(page, id=page.stem, marks=() if page.stem in FAST else pytest.mark.slow)
    for page in sorted((ROOT / "docs" / "howto").glob("*.md"))
]


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the repository's presets and recipes, in which a how-to's files may be written."""
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    (tmp_path / "recipes").mkdir()
    for recipe in (ROOT / "recipes").iterdir():
        (tmp_path / "recipes" / recipe.name).symlink_to(recipe)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "plugins")])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.fast_cases(1)
def test_a_how_to_does_what_it_says(
    page: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = list(fences(page))
    for block in blocks:
        if block.title is not None:
            file = repository / block.title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, encoding="utf-8")
    catalogue = Catalogue(repository)
    for block in blocks:
        for line in block.text.splitlines() if block.language == "sh" and block.reason is None else ():
            words = line.replace("'", "").split()[3:]
            assert main(words, catalogue) == 0, capsys.readouterr()
    (last,) = [block.title for block in blocks if block.title and Path(block.title).name.startswith("test_")]
    assert blocks[-1].title == last, "a how-to ends in its test"
    assert _run(repository / last, tmp_path_factory) > 0


def _run(file: Path, folders: pytest.TempPathFactory) -> int:
    """Run the tests of a file, and return how many there are."""
    spec = importlib.util.spec_from_file_location(f"howto_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tests = [test for name, test in vars(module).items() if name.startswith("test_")]
    for test in tests:
        test(*([folders.mktemp("howto")] if "tmp_path" in inspect.signature(test).parameters else []))
    return len(tests)
