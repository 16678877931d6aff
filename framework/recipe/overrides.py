"""Parses the overrides of the command line, and says in plain words what is wrong with those that do not parse."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from framework.recipe.catalogue import Catalogue
from framework.recipe.layers import child
from framework.recipe.problem import Key, Origin, Problem, RecipeError, nearest
from framework.recipe.safe_yaml import DEEPEST, LONGEST_NUMBER, nesting

COMMAND_LINE = Origin("command line")
WHOLE_REFERENCE = re.compile(r"\$\{([\w\[\]-][\w.\[\]-]*)\}")


def split_reference(text: str) -> Key:
    """`a.b[0].c` as a key."""
    return tuple(part for part in re.split(r"[.\[\]]+", text) if part)


def place(raw: Any, key: Key) -> Key:
    """The key at which the value of `key` is written in the tree `raw`: interpolated mappings are followed."""
    node, walked, rest = raw, Key(), list(key)
    follows = 0
    while rest and follows < 100:
        walked = (*walked, rest.pop(0))
        node = child(node, walked[-1])
        whole = WHOLE_REFERENCE.fullmatch(node) if isinstance(node, str) and rest else None
        if whole:
            rest = [*split_reference(whole[1]), *rest]
            node, walked, follows = raw, Key(), follows + 1
    return key if rest else walked


SWEEPER = "hydra/sweeper"
"""The override that chooses a sweep's sweeper: `hydra/sweeper=optuna`."""
SETTING = "hydra.sweeper."
"""The prefix of the sweeper's settings: `hydra.sweeper.n_trials=20`."""


_KEY = re.compile(r"[+~]{0,2}[\w$-][\w$/-]*(@[\w$:.-]*)?(\.[\w$/-]+|\[[\w$/-]+\])*")
"""The left side of an override."""


def parse_overrides(overrides: Iterable[str], problems: list[Problem]) -> Iterator[Override]:
    """The overrides that parse. A problem is added for each of the others."""
    for override in parse_words(overrides, problems):
        key = override.get_key_element()
        if key == SWEEPER or key.startswith(SETTING):
            problems.append(Problem(COMMAND_LINE, key, "is of a sweep: add -m"))
        elif override.is_sweep_override():
            message = "several values need -m (write key=[a,b] for one list)"
            problems.append(Problem(COMMAND_LINE, str(override.input_line), message))
        else:
            yield override


def parse_words(words: Iterable[str], problems: list[Problem]) -> Iterator[Override]:
    """The words of the command line that Hydra's grammar takes, those of a sweep among them. A problem is added for
    each of the others.
    """
    parser = OverridesParser.create()
    for word in words:
        try:
            override = None if _is_too_deep(word) else parser.parse_override(word)
        except (HydraException, ValueError):  # a number of thousands of digits is a ValueError
            override = None
        if override is not None and override.key_or_group:
            yield override
        else:
            problems.append(Problem(COMMAND_LINE, word, _unparsed(word)))


def _is_too_deep(word: str) -> bool:
    return nesting(word, r"[\[{(]", r"[)}\]]") > DEEPEST


def _unparsed(word: str) -> str:
    """What is wrong with a word that the grammar of overrides refuses, and the remedy."""
    key, equals, value = word.partition("=")
    if _is_too_deep(word):
        return f"is nested more than {DEEPEST} deep"
    if len(value) > LONGEST_NUMBER and value.lstrip("+-").isdecimal():
        return f"a number of {len(value)} characters; {LONGEST_NUMBER} are the most"
    if word.startswith("-"):
        return f"no option is called so; a value is set without dashes: {word.lstrip('-').partition('=')[0]}=VALUE"
    if not equals:
        return "is no key=value"
    if not _KEY.fullmatch(key.strip()):
        return f"{key!r} is no key: write names with dots between them (stage.lr), or slashes (stage/objective)"
    if value.startswith("="):
        return "has two =; write one"
    for quote in ("'", '"'):
        if value.count(quote) % 2:
            return f"a {quote} is not closed; quote the whole word for the shell, too"
    for opening, closing in ("[]", "{}", "()"):
        more, fewer = value.count(opening), value.count(closing)
        if more != fewer:
            have, lack = (opening, closing) if more > fewer else (closing, opening)
            return f"has a {have} without its {lack}; quote the whole word for the shell, too"
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"the value has a character that overrides give a meaning; quote it: \"{key}='{escaped}'\""


def refuse_unknown_recipe(overrides: Iterable[Override], catalogue: Catalogue) -> None:
    """Raise `RecipeError` for a recipe that does not exist, in one line with the nearest name."""
    recipes = catalogue.recipes()
    given = [override for override in overrides if override.key_or_group == "recipe"]
    if len(given) > 1:
        names = ", ".join(str(override.value()) for override in given)
        raise RecipeError(
            [Problem(COMMAND_LINE, "recipe", f"is given {len(given)} times: {names}; leave all but one out")]
        )
    for override in given:
        name = override.value() if override.key_or_group == "recipe" and not override.is_delete() else None
        if name is not None and name not in recipes:
            known = ", ".join(recipes) or "none"
            raise RecipeError(
                [
                    Problem(
                        COMMAND_LINE,
                        f"recipe={name}",
                        f"no such recipe; there are: {known}",
                        nearest(str(name), recipes),
                    )
                ]
            )


def first_line(error: BaseException) -> str:
    """The first line of the error's message, or of its cause's where it has none."""
    text = str(error).strip() or str(error.__cause__ or type(error).__name__).strip()
    return text.splitlines()[0]
