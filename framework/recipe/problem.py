"""What is wrong with a recipe, and what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

Key = tuple[str, ...]
"""A place in the configuration tree: names of mappings and, as decimal strings, positions of lists."""


def dotted(key: Key) -> str:
    """`key` as people write it: `task.stages.0.lr`."""
    return ".".join(key)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value was set: a file relative to the repository and its line, or an override of the command line."""

    file: str
    line: int | None = None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault of a recipe; a warning does not stop a run."""

    origin: Origin
    key: str
    message: str
    nearest: str | None = None
    warning: bool = False

    def __str__(self) -> str:
        meant = f" (nearest right: {self.nearest})" if self.nearest else ""
        place = f"{self.origin} {self.key}" if self.key else str(self.origin)
        return f"{'warning: ' if self.warning else ''}{place}: {self.message}{meant}"


class RecipeError(Exception):
    """A recipe that cannot run. `problems` holds all that was found; the text is one line for each."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate that `name` is most probably a misspelling of, if any comes close."""
    matches = difflib.get_close_matches(name, sorted(set(candidates)), n=1, cutoff=0.5)
    return matches[0] if matches else None
