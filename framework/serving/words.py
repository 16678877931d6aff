"""The words of the verbs that serve a run's model: key=value, all faults told at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from framework.recipe.problem import Origin, Problem, RecipeError, nearest
from framework.run.layout import EXPORTED_RECIPE_FILE, RECIPE_FILE, RUNS

LAST_PORT = 65535
MOST = 1 << 20
"""Numbers must be below it."""
COMMAND = Origin("command line")


@dataclass
class Words:
    """What a verb is told, and what is wrong with it.

    Args:
        verb: The verb's name.
        words: What follows it.
        defaults: The words next to `run`, with their values unless given.
    """

    verb: str
    words: Sequence[str]
    defaults: Mapping[str, str]
    values: dict[str, str] = field(init=False)
    """The words' values."""
    given: dict[str, str] = field(init=False)
    """Those that are not defaults."""
    problems: list[Problem] = field(init=False)
    """What cannot be used."""

    def __post_init__(self) -> None:
        self.given = dict(word.split("=", 1) for word in self.words if "=" in word)
        self.problems = []
        for word in self.words:
            if "=" not in word:
                self.fault(word, f"is no word of {self.verb}; give key=value")
        known = ["run", *self.defaults]
        for key in self.given:
            if key not in known:
                self.fault(key, f"is no word of {self.verb}", nearest(key, known))
        self.values = {**self.defaults, **self.given}

    def fault(self, key: str, message: str, near: str | None = None) -> None:
        """Note what is wrong with a word."""
        self.problems.append(Problem(COMMAND, key, message, near))

    def numbers(self, *keys: str) -> dict[str, int]:
        """The whole numbers, from 1 on, that `keys` give; a port is one of TCP."""
        found: dict[str, int] = {}
        for key in keys:
            value = self.values[key]
            if not (value.isascii() and value.isdecimal() and 0 < int(value) < MOST):
                self.fault(key, f"{value!r}; give a whole number from 1 on")
            elif key == "port" and int(value) > LAST_PORT:
                self.fault(key, f"{value}; give at most {LAST_PORT}")
            else:
                found[key] = int(value)
        return found

    def filled(self, *keys: str) -> None:
        """Note which of `keys` are given without a value."""
        for key in keys:
            if self.given.get(key) == "":
                self.fault(key, "is empty, as an unset variable is; give it, or leave it out")

    def run(self) -> Path:
        """The folder of the run that is named, or of its export."""
        run = Path(self.given.get("run", ""))
        if "run" not in self.given:
            self.fault("run", f"run=NAME is needed: a run's folder, its name below {RUNS}, or an exported folder")
        elif not any(_has_recipe(folder) for folder in (run, RUNS / run)):
            self.fault("run", f"{run}: is neither a run's folder, nor a name below {RUNS}, nor an exported folder with "
                       f"its {EXPORTED_RECIPE_FILE}")  # fmt: skip
        return run if _has_recipe(run) else RUNS / run

    def refuse(self) -> None:
        """Raise `RecipeError` with all that was noted."""
        if self.problems:
            raise RecipeError(self.problems)


def _has_recipe(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (RECIPE_FILE, EXPORTED_RECIPE_FILE))
