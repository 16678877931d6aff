"""Writes the generated pages of the documentation, before the site is built.

python -m tools.docs            docs/guarantees.md, and docs/reference/ (which git ignores)
python -m tools.docs --check    exit code 1 if the committed docs/guarantees.md is out of date
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tools.docs.guarantees import guarantees_page
from tools.docs.reference import reference_pages

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: list[str] | None = None) -> int:
    """Write the pages, or check the committed one. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.docs", description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; report whether the page is up to date")
    options = parser.parse_args(arguments)
    page, text = ROOT / "docs" / "guarantees.md", guarantees_page(ROOT)
    if options.check:
        if page.read_text(encoding="utf-8") != text:
            print("docs/guarantees.md is out of date; run: python -m tools.docs", file=sys.stderr)
            return 1
        return 0
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
