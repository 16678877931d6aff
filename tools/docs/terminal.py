"""Draws what a command printed on a terminal as an SVG.

    script -qec "python -m framework recipe=demo" demo.ansi
    python -m tools.docs.terminal demo.ansi docs/pictures/demo.svg --title "make demo"

The same capture gives the same picture. Nothing is fetched: viewers use a font of their own.
"""

from __future__ import annotations

import argparse
import io
import re
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

FONTS = re.compile(r"@font-face \{\{.*?\}\}\n", re.DOTALL)
"""The rules of rich's template that fetch a font from another host."""
CURSOR = re.compile(r"\x1b\[\?25[lh]|\x1b\]8;[^\x1b]*\x1b\\")
"""Codes that hide the cursor, show it, or begin a link."""
UP = "\x1b[1A"
"""The code that moves the cursor up a line, as a bar of two lines does before it is drawn again."""


def last_lines(capture: str) -> str:
    """What the terminal showed in the end: of lines that were drawn again and again, their last drawing."""
    shown: list[str] = []
    for line in CURSOR.sub("", capture).replace("\r\n", "\n").split("\n"):
        shown = shown[: len(shown) - line.count(UP)]
        parts = re.split(r"\r|\x1b\[2K", line.rpartition(UP)[2].rstrip("\r"))
        shown.append(next((part for part in reversed(parts) if part), ""))
    return "\n".join(shown)


def terminal_svg(capture: str, title: str, width: int = 120) -> str:
    """The picture of a capture, `width` columns wide."""
    text = re.sub(r"\AScript started on [^\n]*\n|\n*Script done on [^\n]*\n*\Z", "", last_lines(capture))
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.from_ansi(text), no_wrap=True, overflow="crop")
    return console.export_svg(title=title, unique_id="terminal", code_format=FONTS.sub("", CONSOLE_SVG_FORMAT))


def main(arguments: list[str] | None = None) -> int:
    """Read a capture, write its picture. Returns 0."""
    parser = argparse.ArgumentParser(prog="python -m tools.docs.terminal", description=__doc__.partition("\n")[0])
    parser.add_argument("capture", type=Path, help="what `script` recorded")
    parser.add_argument("picture", type=Path, help="the SVG to write")
    parser.add_argument("--title", default="python -m framework", help="the window's title")
    parser.add_argument("--width", type=int, default=120, help="the terminal's columns")
    options = parser.parse_args(arguments)
    capture = options.capture.read_bytes().decode("utf-8")  # read_text would make a new line of each return
    svg = terminal_svg(capture, options.title, options.width)
    options.picture.write_text(svg, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
