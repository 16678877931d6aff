"""Which texts show nothing, against the properties that Unicode gives characters."""

from __future__ import annotations

import unicodedata

import pytest
import regex

from framework.scene.text import is_blank

IGNORED = regex.compile(r"[\p{Default_Ignorable_Code_Point}\p{White_Space}\p{Cc}\u2800\ufff9-\ufffb]*")


@pytest.mark.slow
def test_characters_that_show_nothing_are_those_that_unicode_says() -> None:
    """The regex package has tables of its own; characters that a later version of Unicode assigns are left out."""
    wrong = [
        hex(code)
        for code in range(0x110000)
        if unicodedata.category(chr(code)) not in ("Cn", "Cs")
        and is_blank(chr(code)) != bool(IGNORED.fullmatch(chr(code)))
    ]
    assert wrong == []


@pytest.mark.parametrize("shown", ["a", "\u200b1", "é", "e\u0301", "\u05d0\u200f", "🙂\ufe0f", "。", "\u0600"])
def test_a_text_with_one_character_that_shows_is_kept(shown: str) -> None:
    assert not is_blank(shown)
