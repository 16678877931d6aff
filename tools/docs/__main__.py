"""Writes the generated pages of the documentation, before the site is built.

python -m tools.docs            docs/guarantees.md, docs/attacks.md, the tables of docs/howto/reward.md, and
                                docs/reference/ (which git ignores)
python -m tools.docs --check    exit code 1 if a committed page is out of date
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from tools.docs.attacks import attacks_page
from tools.docs.faults import faults_section
from tools.docs.guarantees import guarantees_page
from tools.docs.reference import reference_pages
from tools.docs.reward_fields import reward_page

ROOT = Path(__file__).resolve().parents[2]
COMMITTED: dict[str, Callable[[Path], str]] = {
    "guarantees.md": guarantees_page,
    "attacks.md": lambda root: f"{attacks_page(root)}\n{faults_section(root)}\n",
    "howto/reward.md": reward_page,
}
"""The generated pages that are committed: {file in docs/: its content for a repository}."""


def main(arguments: list[str] | None = None) -> int:
    """Write the pages, or check the committed ones. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.docs", description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; report whether the pages are up to date")
    options = parser.parse_args(arguments)
    pages = {ROOT / "docs" / name: content(ROOT) for name, content in COMMITTED.items()}
    if options.check:
        stale = [page.name for page, text in pages.items() if page.read_text(encoding="utf-8") != text]
        if stale:
            print(f"docs/{', docs/'.join(stale)}: out of date; run: python -m tools.docs", file=sys.stderr)
        return int(bool(stale))
    for page, text in pages.items():
        page.write_text(text, encoding="utf-8")
    write_reference(ROOT)
    return 0


def write_reference(root: Path) -> None:
    """Write the pages of the configuration reference, which git ignores."""
    folder = root / "docs" / "reference"
    folder.mkdir(exist_ok=True)
    for name, content in reference_pages(root).items():
        (folder / f"{name}.md").write_text(content, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
