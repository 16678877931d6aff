"""Finds secrets that a recipe would expose: its resolved form is printed, compared and kept in the run's folder.

A secret is found by what it is (`framework.recipe.credentials`), wherever it stands: a value, a key, a comment, a part
that others complete, or a variable that an interpolation reads. A false alarm is silenced by the recipe itself:
`not_secret` lists the key, or the variable, that a person has looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from framework.recipe.credentials import is_credential, is_secret, known_values, looks_secret, tells_secret
from framework.recipe.layers import leaves, value_at
from framework.recipe.problem import Key, Origin, Problem, dotted
from framework.recipe.variables import refused_calls, variables_read

if TYPE_CHECKING:
    from framework.recipe.composition import Composition

NOT_SECRET = "not_secret"
"""The root key that lists false alarms."""
REMEDY = "give the variable's name, and have what needs the value read it"


def exposures(composition: Composition) -> Iterator[Problem]:
    """Every place of the recipe that would expose a secret. No message holds any part of one."""
    innocent = _names(composition, (NOT_SECRET,))
    seen: set[Key] = set()
    for key, problem in [*_literals(composition), *_variables(composition), *_assembled(composition)]:
        if key not in seen and dotted(key) not in innocent:
            seen.add(key)
            yield problem
    yield from _comments(composition)


def unprintable(composition: Composition) -> list[Problem]:
    """Why nothing of the recipe's resolved form may be printed: it holds secrets, or calls what may fetch some."""
    refused = refused_calls(composition.raw)
    calls = [Problem(composition.origin(key), dotted(key), why) for key, why in refused]
    return [*exposures(composition), *calls]


def _literals(composition: Composition) -> Iterator[tuple[Key, Problem]]:
    """Secrets written into the recipe or onto the command line, as values or as names of keys."""
    known = known_values()
    for key, value in leaves(composition.raw):
        if is_credential(_named(composition, key), value, known):
            yield key, _problem(composition, key, "the value looks like a credential")
        for depth, name in enumerate(key):
            if looks_secret(name) or name in known:
                yield key, _problem(composition, key, "the name of a key in it looks like a credential", key[:depth])


def _named(composition: Composition, key: Key) -> Key:
    """The key of a value, or in a pair `{name: password, value: ...}` the name that it has there."""
    pair = value_at(composition.raw, key[:-1]) if key and key[-1] == "value" else None
    return (*key[:-1], str(pair["name"])) if isinstance(pair, dict) and "name" in pair else key


def _variables(composition: Composition) -> Iterator[tuple[Key, Problem]]:
    """Interpolations of variables that hold secrets: by name, by value, or because `launch.secrets` says so."""
    named = _names(composition, ("launch", "secrets"))
    innocent = _names(composition, (NOT_SECRET,)) - named
    for key, name in variables_read(composition.raw):
        if name in named or (is_secret(name) and name not in innocent):
            yield key, _problem(composition, key, f"it reads {name}, a secret")


def _assembled(composition: Composition) -> Iterator[tuple[Key, Problem]]:
    """Secrets that interpolation puts together from innocent parts."""
    known = known_values()
    for key, value in leaves(composition.tree):
        if is_credential(key, value, known):
            yield key, _problem(composition, key, "resolved, the value looks like a credential")


def _comments(composition: Composition) -> Iterator[Problem]:
    """Secrets in the text of recipes and presets that no value holds: repositories, snapshots and reviews keep them."""
    known = known_values()
    for name, file in {layer.name: layer.file for layer in composition.layers}.items():
        if not file.is_file():
            continue
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if "#" in line and tells_secret(line.partition("#")[2], known):
                message = "the comment holds what looks like a credential; take it out, and revoke it"
                yield Problem(Origin(name, number), "", message)


def _names(composition: Composition, key: Key) -> set[str]:
    """The names in the list at `key`; none where there is no list."""
    value = value_at(composition.raw, key)
    return {str(name) for name in value} if isinstance(value, list) else set()


def _problem(composition: Composition, key: Key, what: str, shown: Key | None = None) -> Problem:
    message = f"{what}; the run's folder would keep it: {REMEDY}; if it is none, list it in {NOT_SECRET}"
    return Problem(composition.origin(key), dotted(key if shown is None else shown), message)
