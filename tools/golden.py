"""The golden resolved YAML of every recipe, checked in so that a pull request shows what really changes.

python -m tools.golden            write tests/golden/<recipe>.yaml for every recipe, plugins' included
python -m tools.golden --check    compare only; exit code 1 and the differences when a file is stale
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from framework.recipe.catalogue import Catalogue
from framework.recipe.compose import compose
from framework.recipe.show import golden

REFRESH = "python -m tools.golden"


def expected(catalogue: Catalogue) -> dict[str, str]:
    """Every recipe's resolved tree by the name of its golden file; paths below the repository are made relative."""
    files = {}
    for recipe in catalogue.recipes():
        tree = golden(compose([f"recipe={recipe}"], catalogue))
        files[f"{recipe}.yaml"] = f"# {recipe}, resolved. Written by `{REFRESH}`.\n" + tree.replace(
            f"{catalogue.root}/", ""
        )
    return files


def stale(catalogue: Catalogue, folder: Path) -> Iterator[str]:
    """A difference for every golden file that is not what its recipe resolves to, or that has no recipe any more."""
    wanted = expected(catalogue)
    there = {file.relative_to(folder).as_posix(): file.read_text("utf-8") for file in folder.rglob("*.yaml")}
    for name in sorted(wanted.keys() | there.keys()):
        old, new = there.get(name, "").splitlines(), wanted.get(name, "").splitlines()
        difference = difflib.unified_diff(old, new, f"{folder.name}/{name}", "resolved now", lineterm="", n=1)
        if text := "\n".join(difference):
            yield text


def write(catalogue: Catalogue, folder: Path) -> None:
    """Write every golden file and remove those without a recipe."""
    wanted = expected(catalogue)
    for file in folder.rglob("*.yaml"):
        if file.relative_to(folder).as_posix() not in wanted:
            file.unlink()
    for name, text in wanted.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Write or compare. Returns 1 when `--check` finds a stale file."""
    parser = argparse.ArgumentParser(prog=REFRESH, description="Golden resolved YAML of every recipe.")
    parser.add_argument("--check", action="store_true", help="compare only")
    options = parser.parse_args(arguments)
    os.environ.pop("RECORDINGS", None)  # a recipe's golden form must not depend on who resolves it
    catalogue = Catalogue()
    folder = catalogue.root / "tests" / "golden"
    if not options.check:
        write(catalogue, folder)
        return 0
    differences = list(stale(catalogue, folder))
    print("\n".join(differences) if differences else "every golden file is what its recipe resolves to")
    if differences:
        print(f"refresh with: {REFRESH}", file=sys.stderr)
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
