"""What a text is worth: whether a file can hold it, and whether a reader sees anything of it."""

from __future__ import annotations

import unicodedata

UNSEEN = (
    (0x00AD, 0x00AD), (0x034F, 0x034F), (0x061C, 0x061C), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F),
    (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0x2800, 0x2800), (0x3164, 0x3164), (0xFE00, 0xFE0F),
    (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0), (0xFFF0, 0xFFFB), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF),
)  # fmt: skip
"""First and last of each range of characters that show nothing: Unicode's property Default_Ignorable_Code_Point
(DerivedCoreProperties.txt, version 16), the anchors of annotations and the blank of braille. Among them are spaces
without width, byte order marks, controls of direction, tags and fillers."""
SPACES = frozenset(("Cc", "Zs", "Zl", "Zp"))
"""Unicode's general categories of controls and of spaces."""


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can write `text`: it holds no surrogate, half of a character that JSON may escape alone."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_blank(text: str) -> bool:
    """Whether `text` shows nothing: it is empty, or all of its characters are spaces, controls or invisible."""
    return all(map(_is_unseen, text))


def _is_unseen(character: str) -> bool:
    if unicodedata.category(character) in SPACES:
        return True
    return any(first <= ord(character) <= last for first, last in UNSEEN)
