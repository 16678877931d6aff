"""Problems of a recipe: where, what, and the name that was probably meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from framework.recipe.credentials import masked

UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Characters that ring, erase or turn text round where it is shown."""
Key = tuple[str, ...]
"""A place in the configuration tree: names in mappings and, as decimal strings, positions in lists."""


def dotted(key: Key) -> str:
    """The key in dotted notation: `task.stages.0.lr`."""
    return ".".join(key)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value was set."""

    file: str
    """The file, relative to the repository, or `command line`."""
    line: int | None = None
    """The line; None for an override."""

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault of a recipe."""

    origin: Origin
    """Where it was made."""
    key: str
    """The dotted key that it concerns."""
    message: str
    """What is wrong."""
    nearest: str | None = None
    """The name that was probably meant."""
    warning: bool = False
    """Whether the recipe can run nevertheless."""

    def __str__(self) -> str:
        meant = f" (did you mean {self.nearest}?)" if self.nearest else ""
        place = f"{self.origin} {self.key}" if self.key else str(self.origin)
        text = masked(f"{'warning: ' if self.warning else ''}{place}: {self.message}{meant}")
        return UNPRINTABLE.sub(lambda found: f"U+{ord(found[0]):04X}", text)


class RecipeError(Exception):
    """A recipe that cannot run. `problems` has all its problems; the message has one line for each."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def nearest(name: str, candidates: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The candidate that `name` is probably a misspelling of; None where none is as similar as `cutoff`, of 1."""
    matches = difflib.get_close_matches(name, sorted(set(candidates)), n=1, cutoff=cutoff)
    return matches[0] if matches else None
