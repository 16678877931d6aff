"""The site builds without a warning, and its generated pages say what the source says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from framework.recipe.catalogue import Catalogue
from framework.recipe.reference import components
from tests.docs.documents import ROOT
from tools.docs.__main__ import main, write_reference
from tools.docs.attacks import SURFACES, attacks, attacks_page
from tools.docs.faults import KINDS, faults_section
from tools.docs.guarantees import guarantees_page, proofs
from tools.docs.reference import reference_pages

PLUGIN = '''"""A plugin."""
from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Interval

from framework.recipe.component import component
from framework.recipe.ranges import Share


@component
@dataclass
class Base:
    """What they share."""

    share: Share = 0.5
    """A part of
    the whole."""


@component
@dataclass
class Made(Base):
    """A component.

    Raises `ValueError` now and then.
    """

    steps: Annotated[int, Interval(ge=1, le=9)] | None
    """How many."""
    names: list[str] = field(default_factory=list)
    """Which."""


@component
def build(rate: float, *, kind: str = "a") -> None:
    """Builds.

    Args:
        rate: How fast, in
            steps a second.
        kind: Which | kind.
    """


class Other:
    """No component."""
'''


def test_the_reference_shows_type_range_default_and_meaning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    package = tmp_path / "plugins" / "documented_plugin"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(PLUGIN)
    (tmp_path / "framework").mkdir()
    page = reference_pages(tmp_path)["plugins"]
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert rows == [
        "| `share` | `float` | from 0 to 1 | `0.5` | A part of the whole. |",
        "| `share` | `float` | from 0 to 1 | `0.5` | A part of the whole. |",
        "| `steps` | `int \\| None` | from 1 to 9 |  | How many. |",
        "| `names` | `list[str]` |  | `list()` | Which. |",
        "| `rate` | `float` |  |  | How fast, in steps a second. |",
        "| `kind` | `str` |  | `'a'` | Which \\| kind. |",
    ]
    assert "Other" not in page


def test_every_argument_of_every_component_is_documented() -> None:
    cells = [line.split(" | ") for page in reference_pages(ROOT).values() for line in page.splitlines()]
    bare = [row[0] for row in cells if row[0].startswith("| `") and row[-1].strip(" |") == ""]
    assert len(list(components(Catalogue(ROOT)))) > 50
    assert bare == []


@pytest.mark.slow
def test_the_generated_pages_are_up_to_date() -> None:
    assert main(["--check"]) == 0, "run: python -m tools.docs"


def test_a_promise_lists_all_its_tests_and_none_is_made_without(tmp_path: Path) -> None:
    folder = tmp_path / "tests" / "data"
    folder.mkdir(parents=True)
    mark = '@pytest.mark.guarantee("It holds")\n'
    (folder / "test_a.py").write_text(f"{mark}def test_one(): ...\n\ndef test_free(): ...\n{mark}def test_two(): ...\n")
    assert [proof.test for proof in proofs(tmp_path)] == ["test_one", "test_two"]
    assert "| It holds | `tests/data/test_a.py`: `test_one`, `test_two` |" in guarantees_page(tmp_path)


def test_attacks_are_counted_by_surface_with_their_cases(tmp_path: Path) -> None:
    folder = tmp_path / "tests" / "data"
    folder.mkdir(parents=True)
    (folder / "test_a.py").write_text(
        'WAYS = {"one": 1, "two": 2}\n'
        '@pytest.mark.attack("yaml", "a tag", "refused")\n@pytest.mark.parametrize("way", WAYS)\n'
        '@pytest.mark.parametrize("n", [*range(3), 4])\ndef test_one(way, n): ...\n'
        '@pytest.mark.attack("yaml", "bytes", "refused")\n@fuzz(30)\n@given(x=st.binary())\ndef test_two(x): ...\n'
    )
    assert [(attack.test, attack.cases, attack.examples) for attack in attacks(tmp_path)] == [
        ("test_one", 8, 0),
        ("test_two", 1, 30),
    ]
    assert "| YAML | 2 | 8 | 30 |" in attacks_page(tmp_path)
    (folder / "test_a.py").write_text('@pytest.mark.attack("sky", "a", "b")\ndef test_one(): ...\n')
    with pytest.raises(ValueError, match=r"tests/data/test_a.py: test_one: give attack"):
        attacks_page(tmp_path)


def test_every_kind_of_fault_is_held_by_a_test(tmp_path: Path) -> None:
    folder = tmp_path / "tests" / "data"
    folder.mkdir(parents=True)
    marks = [f"@pytest.mark.fault({kind!r})\n" for kind in KINDS]
    (folder / "test_a.py").write_text("".join([*marks, "def test_one(): ...\n"]))
    assert faults_section(tmp_path).count("`tests/data/test_a.py`: `test_one`") == len(KINDS) >= 33
    (folder / "test_a.py").write_text("".join([*marks[1:], "def test_one(): ...\n"]))
    with pytest.raises(ValueError, match=r"no test carries pytest.mark.fault of \['a camera that no scene has'\]"):
        faults_section(tmp_path)
    (folder / "test_a.py").write_text('@pytest.mark.fault("rain")\ndef test_one(): ...\n')
    with pytest.raises(ValueError, match=r"test_one: fault.'rain'. is no kind"):
        faults_section(tmp_path)


@pytest.mark.slow
def test_at_least_sixty_attacks_were_tried_on_every_surface() -> None:
    tried = list(attacks(ROOT))
    assert {attack.surface for attack in tried} == set(SURFACES)
    assert len(tried) >= 60


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    write_reference(ROOT)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "howto" / "reward.html").is_file()
    fetched = [line for line in (tmp_path / "index.html").read_text().splitlines() if 'src="http' in line]
    assert fetched == [], "nothing is fetched from another host"
