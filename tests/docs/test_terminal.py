"""The terminal's picture: the last drawing of each line, the same for the same capture, and nothing fetched."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from tools.docs.terminal import last_lines, main, terminal_svg

CAPTURE = (
    'Script started on 2026-01-01 [COMMAND="x"]\n'
    "\x1b[1mdemo\x1b[0m  a run\r\n"
    "\x1b[?25lbroad 1/2\r\x1b[2Kbroad \x1b[32m2/2\x1b[0m\r\n\x1b[?25hreport x\r\n"
    "\nScript done on 2026-01-01\n"
)


def test_of_a_bar_its_last_drawing_stays() -> None:
    assert last_lines("a 1\r\x1b[2Ka 2\r\x1b[2Ka 3\r\nb\n") == "a 3\nb\n"


def test_of_a_bar_of_two_lines_the_last_drawing_stays() -> None:
    again = "\r\x1b[2K\x1b[1A\x1b[2K"
    assert last_lines(f"a\r\nbar 1\r\nleft{again}bar 2\r\nleft{again}bar 3\r\nb\n") == "a\nbar 3\nb\n"


def test_the_picture_holds_the_text_and_only_that() -> None:
    svg = terminal_svg(CAPTURE, "make demo")
    shown = "\n".join(
        "".join(node.itertext()) for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("text")
    )
    shown = shown.replace("\xa0", " ")
    assert "demo" in shown
    assert "2/2" in shown
    assert "1/2" not in shown
    assert "Script" not in shown
    assert "make demo" in shown


def test_it_is_deterministic_and_fetches_nothing() -> None:
    svg = terminal_svg(CAPTURE, "make demo")
    assert svg == terminal_svg(CAPTURE, "make demo")
    assert set(re.findall(r"https?://[^\"' )]+", svg)) <= {"http://www.w3.org/2000/svg", "https://www.textualize.io"}
    assert "font-face" not in svg


def test_a_captured_file_gives_that_picture(tmp_path: Path) -> None:
    (tmp_path / "demo.ansi").write_bytes(CAPTURE.encode())
    assert main([str(tmp_path / "demo.ansi"), str(tmp_path / "demo.svg"), "--title", "make demo"]) == 0
    assert (tmp_path / "demo.svg").read_text(encoding="utf-8") == terminal_svg(CAPTURE, "make demo")
