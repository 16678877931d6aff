"""Whether a value of a recipe fits an argument's annotation, decided on the annotation's syntax alone.

Numbers must be finite, integers whole, and both within the bounds that the annotation declares.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from framework.recipe.bounds import as_float32, describe, fewest, read_bounds, within
from framework.recipe.signature import Module, resolve_expression

SEQUENCES = {
    "list",
    "List",
    "Sequence",
    "MutableSequence",
    "Iterable",
    "Collection",
    "set",
    "Set",
    "frozenset",
    "FrozenSet",
}
TUPLES = {"tuple", "Tuple"}
MAPPINGS = {"dict", "Dict", "Mapping", "MutableMapping", "OrderedDict", "DictConfig"}
TRANSPARENT = {"Annotated", "Final", "Required", "NotRequired", "ReadOnly", "InitVar"}
NO_FILE = "there is no file or folder"
INPUTS = {
    "InputPath": "",
    "ConversationsPath": ": lay conversations of your own there (*.json, *.jsonl or *.parquet, next to their images), "
    "or set CONVERSATIONS to the folder that holds them (docs/data.md)",
    "RecordingsPath": ": lay recordings of your own there (kitti_*/, nuscenes_*/, argoverse2_*/), or set RECORDINGS to "
    "the folder that holds them (docs/data.md)",
}
"""The annotations of what must exist, each with the remedy where it does not."""
ANYTHING = {"Any", "object", "TypeVar", "Self"}
SCALARS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "int": ("an integer", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    "float": ("a number", lambda value: is_number(value) and (isinstance(value, int) or is_real(value))),
    "bool": ("true or false", lambda value: isinstance(value, bool)),
    "str": ("text", lambda value: isinstance(value, str)),
    "Path": ("a path", lambda value: isinstance(value, str)),
    "PathLike": ("a path", lambda value: isinstance(value, str)),
    "None": ("null", lambda value: value is None),
}


def is_number(value: Any) -> bool:
    """True for numbers, NaN and infinity included; not for booleans."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_real(value: float) -> bool:
    """True for finite floats that float32 can tell from 0."""
    return math.isfinite(value) and not vanishes(value)


def vanishes(value: float) -> bool:
    """True for a number other than 0 that float32 cannot tell from 0: nothing that it is meant for comes of it."""
    return value != 0 and as_float32(value) == 0


def is_component(value: Any) -> bool:
    """True for a mapping with a `_target_`."""
    return isinstance(value, dict) and "_target_" in value


def misfit(value: Any, annotation: ast.expr | None, source: Module) -> str | None:
    """Why `value` does not fit `annotation`, as the end of a sentence; None where it fits or cannot be judged."""
    if annotation is None or is_component(value):
        return None
    match annotation:
        case ast.Constant(value=str(text)):
            return misfit(value, ast.parse(text, mode="eval").body, source)
        case ast.Constant(value=None):
            return _scalar(value, "None")
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _any_of(value, [left, right], source)
        case ast.Subscript(value=head, slice=inside):
            arguments = inside.elts if isinstance(inside, ast.Tuple) else [inside]
            return _subscript(value, last_name(head), arguments, source)
        case ast.Name() | ast.Attribute():
            return _named(value, annotation, source)
    return None


def last_name(expression: ast.expr) -> str:
    """The last part of a dotted name."""
    return ast.unparse(expression).rpartition(".")[2]


def _scalar(value: Any, name: str) -> str | None:
    wanted, fits = SCALARS[name]
    return None if fits(value) else f"must be {wanted}, not {described(value)}"


def described(value: Any) -> str:
    """A value with its kind, as messages name it: `text (half)`."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return str(value).replace("None", "null")
    if isinstance(value, float) and vanishes(value):
        return f"{value}, which is 0 in float32"
    if value == "":
        return "nothing"
    kind = {dict: "a mapping", list: "a list", bool: "a boolean", str: "text", int: "an integer", float: "a number"}
    return f"{kind.get(type(value), type(value).__name__)} ({str(value)[:60]})"


def _any_of(value: Any, options: list[ast.expr], source: Module) -> str | None:
    wrong = []
    for option in options:
        wrong.append(misfit(value, option, source))
        if wrong[-1] is None:  # asked one by one: a later option may lie in a large file that nothing else reads
            return None
    missing = [text for text in wrong if text and text.startswith(NO_FILE)]
    if inside := [text for text in wrong if text and text.startswith("at ")]:
        return inside[0]  # of the one kind of value that it could be
    wanted = [text.removeprefix("must be ").partition(", not ")[0] for text in wrong if text]
    return missing[0] if missing else f"must be {' or '.join(dict.fromkeys(wanted))}, not {described(value)}"


def _subscript(value: Any, name: str, arguments: list[ast.expr], source: Module) -> str | None:
    if name == "Optional":
        return None if value is None else misfit(value, arguments[0], source)
    if name == "Union":
        return _any_of(value, arguments, source)
    if name == "Annotated":
        return _bounded(value, arguments[0], arguments[1:], source)
    if name in TRANSPARENT:
        return misfit(value, arguments[0], source)
    if name == "Literal":
        allowed = [each.value for each in arguments if isinstance(each, ast.Constant)]
        return None if value in allowed else f"must be one of {', '.join(map(str, allowed))}, not {described(value)}"
    if name in SEQUENCES:
        return _elements(value, [arguments[0]] * len(value) if isinstance(value, list) else [], source)
    if name in TUPLES:
        endless = len(arguments) == 2 and isinstance(arguments[1], ast.Constant) and arguments[1].value is Ellipsis
        return _elements(
            value, [arguments[0]] * len(value) if endless and isinstance(value, list) else arguments, source
        )
    if name in MAPPINGS:
        if not isinstance(value, dict):
            return f"must be a mapping, not {described(value)}"
        return next((wrong for pair in value.items() if (wrong := _entry(*pair, arguments, source))), None)
    if name in ("Callable", "type", "Type"):
        return f"must be a component (a mapping with _target_), not {described(value)}"
    return None


def _bounded(value: Any, base: ast.expr, metadata: list[ast.expr], source: Module) -> str | None:
    """Why `value` does not fit an `Annotated` type: the type's own reason, with the bounds in words, or theirs."""
    wrong = misfit(value, base, source)
    bounds = read_bounds(metadata, source)
    if wrong is None and isinstance(value, list | dict) and len(value) < fewest(bounds):
        return "is empty; it needs an entry at least"
    if not isinstance(base, ast.Name) or base.id not in ("int", "float") or (wrong is None and within(value, bounds)):
        return wrong
    shown, rounded = described(value) if wrong else str(value)[:60], "" if wrong else f"{as_float32(value):g}"
    if rounded and float(rounded) != value and len(shown) > len(rounded):
        shown += f" (in float32 {rounded})"
    return f"must be {SCALARS[base.id][0]} {describe(bounds)}, not {shown}"


def _entry(key: Any, value: Any, arguments: list[ast.expr], source: Module) -> str | None:
    """Why an entry does not fit a mapping's annotations. Keys that should be text are not judged: Hydra makes them."""
    if len(arguments) == 2 and last_name(arguments[0]) != "str" and (wrong := misfit(key, arguments[0], source)):
        return f"the key '{key}' {wrong}"
    wrong = misfit(value, arguments[-1], source)
    return wrong and f"at '{key}' {wrong}"


def _elements(value: Any, annotations: list[ast.expr], source: Module) -> str | None:
    if not isinstance(value, list):
        return f"must be a list, not {described(value)}"
    if len(value) != len(annotations):
        return f"must be a list of {len(annotations)}, not of {len(value)}"
    for position, (each, annotation) in enumerate(zip(value, annotations, strict=True)):
        if wrong := misfit(each, annotation, source):
            return f"at position {position} {wrong}"
    return None


def _named(value: Any, annotation: ast.expr, source: Module) -> str | None:
    name = last_name(annotation)
    if name in INPUTS:
        wrong = _input_path(value)
        return f"{wrong}{INPUTS[name]}" if wrong and wrong.startswith(NO_FILE) else wrong
    if name in SCALARS:
        return _scalar(value, name)
    if name in ANYTHING:
        return None
    if name in SEQUENCES | TUPLES:
        return None if isinstance(value, list) else f"must be a list, not {described(value)}"
    if name in MAPPINGS:
        return None if isinstance(value, dict) else f"must be a mapping, not {described(value)}"
    located = resolve_expression(annotation, source)
    if located is None or located.node is None or located.source is None:
        return None
    if isinstance(located.node, ast.ClassDef):
        bases = {last_name(base.value if isinstance(base, ast.Subscript) else base) for base in located.node.bases}
        if bases & {"Enum", "StrEnum", "IntEnum", "TypedDict", "NamedTuple", "str", "int", "float", "dict", "list"}:
            return None
        if isinstance(value, dict) and value:
            keys = ", ".join(map(str, list(value)[:3]))
            return f"has values ({keys}), but nothing chooses the {name} they are of: choose a preset, or remove them"
        return f"must be a component of type {name} (a mapping with _target_), not {described(value)}"
    if isinstance(located.node, ast.Subscript | ast.BinOp | ast.Name | ast.Attribute):
        return misfit(value, located.node, located.source)
    return None


def _input_path(value: Any) -> str | None:
    if not isinstance(value, str):
        return f"must be a path, not {described(value)}"
    there = "://" in value or Path(value).exists()
    return None if there else f"{NO_FILE} '{value}'"
