"""The environment variables that a recipe reads, whose values are therefore written into a run's folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from framework.recipe.layers import leaves
from framework.recipe.problem import Key

_READ = re.compile(r"\$\{oc\.env:\s*([A-Za-z_]\w*)")
_SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD)(_|$)")  # no TOKENIZER_PATH


def variables_read(raw: Any) -> Iterator[tuple[Key, str]]:
    """Each key of the tree `raw` that reads a variable, and the variable's name."""
    for key, text in leaves(raw):
        for name in _READ.findall(text) if isinstance(text, str) else ():
            yield key, name


def is_secret(name: str) -> bool:
    """True where a variable's name says that its value must not be written anywhere."""
    return _SECRET.search(name.upper()) is not None
