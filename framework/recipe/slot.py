"""Whether a component fits the argument it is given to, decided on source alone.

An argument annotated with a class takes that class and its subclasses; with a protocol, what has the protocol's
members; with `Callable[..., T]`, what makes a T. Where the source does not tell, a component fits.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from framework.recipe.annotation import (
    ANYTHING,
    INPUTS,
    MAPPINGS,
    SCALARS,
    SEQUENCES,
    TRANSPARENT,
    TUPLES,
    is_component,
    last_name,
)
from framework.recipe.signature import (
    Located,
    Module,
    NoSuchTarget,
    base_classes,
    inherits,
    locate,
    resolve_expression,
)

PLAIN = frozenset({*SCALARS, *INPUTS, "bytes", "Literal"}) - {"None"}
"""Annotations that no component fits."""
ELEMENTS = SEQUENCES | TUPLES
FIRST = TRANSPARENT | {"Optional"}
"""Generics whose first argument is the type itself."""


def unfit(value: Any, annotation: ast.expr | None, source: Module) -> str | None:
    """What is wrong with the components in `value` for an argument annotated with `annotation`; None when they fit."""
    if annotation is None or not _holds_components(value):
        return None
    match annotation:
        case ast.Constant(value=str(text)):
            return unfit(value, ast.parse(text, mode="eval").body, source)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _one_of(value, [left, right], source)
        case ast.Subscript(value=head, slice=inside):
            arguments = inside.elts if isinstance(inside, ast.Tuple) else [inside]
            return _generic(value, last_name(head), arguments, source)
        case ast.Name() | ast.Attribute():
            return _named(value, annotation, source)
    return None


def _one_of(value: Any, options: list[ast.expr], source: Module) -> str | None:
    wrong = [
        unfit(value, option, source) if _could_hold(option) else _refusal(value, last_name(option))
        for option in options
    ]
    return None if None in wrong else wrong[0]


def _could_hold(option: ast.expr) -> bool:
    if isinstance(option, ast.Constant):
        return isinstance(option.value, str)
    head = option.value if isinstance(option, ast.Subscript) else option
    return last_name(head) not in PLAIN


def _generic(value: Any, name: str, arguments: list[ast.expr], source: Module) -> str | None:
    if name in FIRST:
        return unfit(value, arguments[0], source)
    if name == "Union":
        return _one_of(value, arguments, source)
    if name in PLAIN:
        return _refusal(value, name)
    if is_component(value):
        if name in ("Callable", "type", "Type"):
            return _maker(value, arguments[-1], source)
        return _refusal(value, name) if name in ELEMENTS | MAPPINGS and _is_readable(value) else None
    if name in ELEMENTS and isinstance(value, list):
        return next((wrong for each in value if (wrong := unfit(each, arguments[0], source))), None)
    if name in MAPPINGS and isinstance(value, dict):
        return next((wrong for each in value.values() if (wrong := unfit(each, arguments[-1], source))), None)
    return None


def _named(value: Any, annotation: ast.expr, source: Module) -> str | None:
    name = last_name(annotation)
    if name in PLAIN:
        return _refusal(value, name)
    if name in ANYTHING or not is_component(value):
        return None
    slot = resolve_expression(annotation, source)
    if slot is None or slot.node is None:
        return None
    if isinstance(slot.node, ast.Subscript | ast.BinOp) and slot.source is not None:
        return unfit(value, slot.node, slot.source)  # an alias
    if value.get("_partial_") is True:
        members = dict(_members(slot)) if _is_protocol(slot) else {}
        return None if not isinstance(slot.node, ast.ClassDef) or "__call__" in members else _refusal(value, name)
    return _instance(value, slot)


def _maker(value: dict[str, Any], made: ast.expr, source: Module) -> str | None:
    """A component for `Callable[..., made]`: a partial one makes a `made` when called, another is called itself."""
    if value.get("_partial_") is not True or _class_of(value.get("_target_")) is None:
        return None
    slot = resolve_expression(made, source)
    return None if slot is None else _instance(value, slot)


def _instance(value: dict[str, Any], slot: Located) -> str | None:
    made = _class_of(value.get("_target_"))
    if made is None or not isinstance(slot.node, ast.ClassDef):
        return None
    if inherits(made, slot):
        return None
    bases = list(base_classes(made))
    if None in bases:
        return None  # a base that cannot be read may be it
    if not _is_protocol(slot):
        return _refusal(value, slot.qualname)
    has = {name for base in bases if base is not None for name, _ in _members(base)}
    missing = sorted({name for name, _ in _members(slot)} - has)
    return f"{_refusal(value, slot.qualname)}: it has no {', '.join(missing)}" if missing else None


def _class_of(target: Any) -> Located | None:
    if not isinstance(target, str):
        return None
    try:
        located = locate(target)
    except (NoSuchTarget, SyntaxError):
        return None
    return located if isinstance(located.node, ast.ClassDef) else None


def _is_readable(value: dict[str, Any]) -> bool:
    """Whether all bases of the component's class can be read, and so what it is not is known."""
    made = _class_of(value["_target_"])
    return made is not None and None not in base_classes(made)


def _members(owner: Located) -> Iterator[tuple[str, ast.stmt]]:
    """The public methods, fields and attributes of a class, `self.x` of its constructor included."""
    assert isinstance(owner.node, ast.ClassDef)
    for statement in owner.node.body:
        match statement:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                if not name.startswith("_") or name == "__call__":
                    yield name, statement
                if name in ("__init__", "__post_init__"):
                    yield from _assigned(statement)
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name, statement
            case ast.Assign(targets=targets):
                yield from ((target.id, statement) for target in targets if isinstance(target, ast.Name))


def _assigned(constructor: ast.stmt) -> Iterator[tuple[str, ast.stmt]]:
    for node in ast.walk(constructor):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, constructor


def _is_protocol(owner: Located) -> bool:
    return isinstance(owner.node, ast.ClassDef) and any(
        last_name(base.value if isinstance(base, ast.Subscript) else base) == "Protocol" for base in owner.node.bases
    )


def _holds_components(value: Any) -> bool:
    return next(_targets(value), None) is not None


def _refusal(value: Any, name: str) -> str:
    """`value` is a component, or holds some."""
    return f"must be a {name}, which {next(_targets(value))} is not"


def _targets(value: Any) -> Iterator[Any]:
    if is_component(value):
        yield value["_target_"]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for each in inside:
        yield from _targets(each)
