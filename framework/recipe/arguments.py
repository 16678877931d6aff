"""Checks the arguments of one component, and the values at a recipe's root, against their declared types and ranges."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from framework.recipe.annotation import is_component, misfit
from framework.recipe.composition import Composition
from framework.recipe.constructor import refusal
from framework.recipe.graft import DATA, PARTS, STAGES
from framework.recipe.layers import MISSING, children, leaves, value_at
from framework.recipe.libraries import library_misfit
from framework.recipe.problem import Key, Origin, Problem, dotted, nearest
from framework.recipe.resolve import references
from framework.recipe.signature import Located, Parameter, Signature, locate, signature
from framework.recipe.slot import unfit

CONTROLS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "_args_": ("a list of arguments", lambda value: isinstance(value, list)),
    "_partial_": ("true or false", lambda value: isinstance(value, bool)),
    "_recursive_": ("true or false", lambda value: isinstance(value, bool)),
    "_convert_": ("one of none, partial, object, all", lambda value: value in ("none", "partial", "object", "all")),
}
"""Hydra's keys of a component next to its arguments: {key: (what it must be, whether a value is that)}."""
HYDRA_KEYS = ("_target_", *CONTROLS)
ROOT = "framework.recipe.root"
"""Where the types of the values at the root are declared."""

SURE = 0.6
"""How much of an argument's name must be there for it to be the one that is meant; else all are listed."""
READ_BY = " (read by "
"""Between what is wrong with a value and the key that reads it by an interpolation."""
REFUSES = "refuses it"
"""What messages about the arguments that a constructor refuses say."""


def argument_faults(composition: Composition, key: Key, value: dict[str, Any], located: Located) -> Iterator[Problem]:
    """The faults of the arguments that the component `value` at `key` gives to `located`.

    Its constructor is asked last, and only about arguments that fit their types one by one.
    """
    if faults := list(_control_faults(composition, key, value)):
        yield from faults
        return
    takes = signature(located)
    names = sorted({str(name) for name in value} - set(HYDRA_KEYS))
    places: dict[str, Key] = {name: (name,) for name in names if name in takes.parameters}
    places |= {name: ("_args_", str(n)) for n, name in enumerate(takes.positional[: len(_by_position(value))])}
    given = {name: value_at(value, place) for name, place in places.items()}
    faults = list(_unknown_and_missing(composition, key, value, takes, names))
    for name, argument in given.items():
        for entry, wrong in () if _has_missing(argument) else _misfits(argument, takes.parameters[name], located):
            fault = fault_at(composition, (*key, *places[name], *entry), wrong)
            faults.append(replace(fault, nearest=_component_meant(composition, value_at(argument, entry), fault)))
    if not faults and len(_by_position(value)) <= len(takes.positional) and (refused := refusal(located, given)):
        below, message, meant = _named(refused.message, given)
        asked = below[:1] or tuple(name for name in refused.arguments if name in given)[:1]
        place = (*key, *(places[asked[0]] if asked else ()), *below[1:])
        fault = fault_at(composition, place, f"{located.qualname} {REFUSES}: {message}")
        faults.append(replace(fault, nearest=meant))
    yield from faults


def _component_meant(composition: Composition, value: Any, fault: Problem) -> str | None:
    """Of a word or an unknown entry in a component's place the reference, or the entry, that was probably meant."""
    if isinstance(value, str) and "must be a component" in fault.message:
        sections = [(name, node) for name, node in children(composition.raw) if not is_component(node)]
        known = {each: f'"${{{name}.{each}}}"' for name, node in sections for each in _component_names(node)}
        near = nearest(value, known, SURE)
        return near and known[near]
    if isinstance(value, dict) and ("nothing chooses" in fault.message or "must be a component" in fault.message):
        above, _, name = fault.key.rpartition(".")
        near = nearest(name, _component_names(value_at(composition.raw, tuple(above.split(".")))), SURE)
        return near and f"{above}.{near}"
    return None


def _component_names(section: Any) -> list[str]:
    return [name for name, each in children(section) if is_component(each)]


def _named(message: str, given: dict[str, Any]) -> tuple[Key, str, str | None]:
    """The value below the arguments `given` that a refusal's `message` begins with, `a.b.c: ['x'] are no ...`; what the
    message says of it, and of the names that it lists the one nearest to `x`. An empty key where it names no value.
    """
    name, _, said = message.partition(": ")
    key = tuple(name.split("."))
    if not said or value_at(given, key) is None:
        return (), message, None
    wrong, *known = re.findall(r"'([^']*)'", said) or [""]
    at = (*key, wrong) if wrong in dict(children(value_at(given, key))) else key
    return at, said, nearest(wrong, known) if known else None


def _control_faults(composition: Composition, key: Key, value: dict[str, Any]) -> Iterator[Problem]:
    """The faults of Hydra's own keys in the component `value` at `key`."""
    for name, (meant, fits) in CONTROLS.items():
        if name in value and not fits(value[name]):
            yield fault_at(composition, (*key, name), f"must be {meant}, not {value[name]!r}")


def strays(composition: Composition) -> Iterator[Problem]:
    """Hydra's own keys where no component is: they say how a component is made, and a section makes none."""
    for key, section in _sections(composition.raw):
        for name in HYDRA_KEYS:
            if name in section:
                message = "stands in a section without a _target_; it belongs to a component: take it out"
                yield Problem(composition.origin((*key, name)), dotted((*key, name)), message)


def _sections(raw: Any, key: Key = ()) -> Iterator[tuple[Key, dict[str, Any]]]:
    """The mappings that are no components, the root included, each with its key."""
    if isinstance(raw, dict) and not is_component(raw):
        yield key, raw
    for name, value in children(raw):
        yield from _sections(value, (*key, name))


def _by_position(value: dict[str, Any]) -> list[Any]:
    return value.get("_args_") or []


def root_faults(composition: Composition) -> Iterator[Problem]:
    """The faults of the values at the root that belong to no component."""
    for owner, place in (("Root", ()), ("Run", ("run",))):
        values = value_at(composition.tree, place)
        for name, parameter in signature(locate(f"{ROOT}.{owner}")).parameters.items():
            value = values.get(name, MISSING) if isinstance(values, dict) else MISSING
            if isinstance(value, dict) or _has_missing(value):
                continue
            if wrong := misfit(value, parameter.annotation, parameter.source):
                yield fault_at(composition, (*place, name), wrong)


def _unknown_and_missing(
    composition: Composition, key: Key, value: dict[str, Any], takes: Signature, names: list[str]
) -> Iterator[Problem]:
    target = value["_target_"]
    by_position = _by_position(value)
    if len(by_position) > len(takes.positional) and not takes.takes_more:
        at = (*key, "_args_")
        message = f"{target} takes {len(takes.positional)} positional arguments"
        yield Problem(composition.origin(at), dotted(at), message)
    for name in names:
        if name in takes.positional[: len(by_position)]:
            message = f"{target} takes '{name}' once; _args_ gives it too"
            yield Problem(composition.origin((*key, name)), dotted((*key, name)), message)
        if name not in takes.parameters and not takes.takes_any:
            written = [_written(key, each) for each in takes.parameters]
            near = nearest(name, written, SURE)
            known = "" if near else f"; it takes {', '.join(written) or 'none'}"
            near = near or _below(value, key, name)
            message = f"{target} takes no argument '{name}'{known}"
            yield Problem(composition.origin((*key, name)), dotted((*key, name)), message, near)
    filled = {*names, *takes.positional[: len(by_position)]}
    missing = [each.name for each in takes.parameters.values() if each.required and each.name not in filled]
    if missing and value.get("_partial_") is not True:
        listed = ", ".join(f"'{name}'" for name in missing)
        origin = _origin_of_component(composition, key, value)
        yield Problem(origin, dotted(key), f"{target} needs the argument {listed}")


def _written(key: Key, name: str) -> str:
    """The argument `name` of the component at `key` as a recipe writes it: the data of a stage go by that name."""
    return DATA if key[:-1] == STAGES and name == PARTS[0] else name


def _below(value: dict[str, Any], key: Key, name: str) -> str | None:
    """The shortest key inside the arguments of the component `value` at `key` that ends in `name`; None for none."""
    ends = [inside[: inside.index(name, 1) + 1] for inside, _ in leaves(value) if name in inside[1:]]
    return dotted((*key, *min(ends, key=len))) if ends else None


def _origin_of_component(composition: Composition, key: Key, value: dict[str, Any]) -> Origin:
    """What first says anything of the component but a preset: it is to give what is missing. Else its target."""
    presets = {layer.name for layer in composition.layers if layer.declares}
    origins = [composition.origin((*key, str(name))) for name in value]
    return next((each for each in origins if each.file not in presets), composition.origin((*key, "_target_")))


def _misfits(argument: Any, parameter: Parameter, located: Located) -> Iterator[tuple[Key, str]]:
    """What is wrong with an argument: of a mapping what is wrong with each entry, and which entry."""
    rest = argument
    while wrong := _misfit(rest, parameter, located):
        names = [name for name in (rest if isinstance(rest, dict) else ()) if wrong.startswith(f"at '{name}' ")]
        yield tuple(map(str, names)), wrong.removeprefix(f"at '{names[0]}' ") if names else wrong
        rest = {name: value for name, value in rest.items() if name not in names} if names else None
        if not rest:
            return


def _misfit(value: Any, parameter: Parameter, located: Located) -> str | None:
    wrong = misfit(value, parameter.annotation, parameter.source) or library_misfit(located, parameter.name, value)
    wrong = wrong or _blank(value, parameter)
    if wrong and isinstance(parameter.default, ast.Constant) and parameter.default.value is not None:
        wrong += f"; the default is {parameter.default.value!s}"
    return wrong or unfit(value, parameter.annotation, parameter.source)


def _blank(value: Any, parameter: Parameter) -> str | None:
    """That a text, or an entry of a list, is blank. No name, path or pattern is; a default may be."""
    if isinstance(parameter.default, ast.Constant) and parameter.default.value == value:
        return None
    if isinstance(value, list):
        return next((f"at position {n} is blank" for n, each in enumerate(value) if _is_blank(each)), None)
    return "is blank; leave it out, or write what is meant" if _is_blank(value) else None


def _is_blank(value: Any) -> bool:
    return isinstance(value, str) and not value.strip()


def fault_at(composition: Composition, key: Key, wrong: str) -> Problem:
    """A fault of the value at `key`, where it is written: the place that an interpolation reads it from."""
    written = key
    for _ in range(20):  # an interpolation that leads back to itself has failed already
        read = next(filter(None, (_read_by(composition, written, depth) for depth in range(1, len(written) + 1))), None)
        if read is None:
            break
        written = read
    reader = "" if written == key or key == ("task", *written) else f"{READ_BY}{dotted(key)})"
    return Problem(composition.origin(written), dotted(written), wrong + reader)


def _read_by(composition: Composition, key: Key, depth: int) -> Key | None:
    """Where the value at `key` lies if its first `depth` names are nothing but a reference."""
    raw = value_at(composition.raw, composition.place(key[:depth]))
    read = list(references(raw, key[:depth]))
    if len(read) != 1 or not (raw.startswith("${") and raw.endswith("}") and raw.count("${") == 1):
        return None
    return (*read[0], *key[depth:])


def _has_missing(value: Any) -> bool:
    return any(leaf == MISSING for _, leaf in leaves(value))
